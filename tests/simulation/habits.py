"""What the worlds of the simulation are like: how senders behave, how long claims live, which faults happen and how fast they are repaired.

A seed decides the profile too (`profile_of`). SPREAD and CROWDED are the wide net; the others are small and dense, each made so that some
guard of the protocol is needed in almost every run: the schedules are those of the shortest traces of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.simulation.steps import APPENDED, COMMITTED, EXECUTED, FLUSH_BEGUN, FLUSH_PART, FLUSHED, PRODUCED, RATER_STEPS, SENT, STEPS

Range = tuple[int, int]


@dataclass(frozen=True)
class Habits:
    name: str
    # senders
    senders: Range
    batches: Range  # of one sender
    new: tuple[int, ...]  # events in a batch that were never sent before
    again: tuple[int, ...]  # and that were
    memory: int  # how many of the latest events may be sent again
    pause_s: tuple[float, ...]
    retry_s: tuple[float, ...]
    patience_s: tuple[float, ...]
    travel_s: tuple[float, float] = (0.0005, 0.02)
    copies: tuple[tuple[int, int], ...] = ((1, 1), (1, 1), (1, 1), (1, 1), (2, 1))  # (nodes that get a batch at once, times each gets it)
    # writers
    shards: tuple[int, ...] = (1, 1, 2, 3)  # claim stores
    writers: Range = (1, 3)
    late: float = 0.2  # chance that a writer but the first comes while the others are at work
    events_per_call: tuple[int, ...] = (1, 5, 50)
    flush_ms: tuple[int, ...] = (50, 500, 3000)
    disk_s: tuple[float, ...] = (0.0002, 0.001, 0.005, 0.05)
    turn_us: tuple[int, ...] = (20, 20, 300)  # what a turn of the loop takes: a slow machine lets more happen between two turns
    segment_bytes: int = 20_000
    sweep_s: float = 0.1
    # time
    max_age_s: int = 3600
    max_skew_s: int = 60
    margin_s: int = 60  # claims live max_age + max_skew + margin
    generation_s: int = 3720
    oldest_s: float = 600  # how old an event may be when it is sent first
    old: float = 0.0  # chance that it is almost as old as that
    revived: float = 0.0  # chance that a batch has events so old that only a writer whose clock went back would take them
    # faults
    faults: Mapping[str, int] = field(default_factory=dict)  # name -> weight; empty: all alike
    number: Range = (1, 8)
    between_s: tuple[float, ...] = (0.01, 0.3, 3.0, 30.0)
    together: tuple[int, ...] = (1, 1, 1, 2)  # how many happen at one moment
    at_a_step: float = 0.3  # chance that a fault waits until a writer takes a certain step
    steps: tuple[str, ...] = STEPS  # one of these
    repair_s: tuple[float, float] = (0.01, 60)
    outage_s: tuple[float, ...] = (0.3, 5, 40)
    jump_s: tuple[int, ...] = (-86_400, -3600, -10, 10, 3600, 86_400)
    jump_lasts_s: tuple[float, float] = (0.01, 60)
    stuck_s: int = 1800  # longer than all outages of a run together: an event that is not answered for so long never will be

    # raters
    rated: float = 0.5  # chance that there are any
    rater_poll_s: float = 0.5
    rater_faults: Mapping[str, int] = field(default_factory=dict)  # as `faults`
    rater_number: Range = (3, 12)
    rater_at_a_step: float = 0.5
    rater_steps: tuple[str, ...] = RATER_STEPS

    @property
    def lifetime_us(self) -> int:
        return (self.max_age_s + self.max_skew_s + self.margin_s) * 1_000_000


SPREAD = Habits(
    name="spread",
    senders=(2, 6),
    batches=(3, 12),
    new=(1, 2, 5, 20),
    again=(0, 0, 1, 3),
    memory=1_000_000,
    pause_s=(0.0, 0.01, 1.0, 20.0),
    retry_s=(0.05, 0.5, 2.0),
    patience_s=(0.05, 2, 30),
)
CROWDED = Habits(
    name="crowded",
    senders=(3, 8),
    batches=(10, 40),
    new=(0, 0, 1),
    again=(1, 1, 2),
    memory=4,
    pause_s=(0.0, 0.002, 0.02),
    retry_s=(0.001, 0.01, 0.1),
    patience_s=(0.005, 0.05, 2),
    number=(10, 40),
    between_s=(0.001, 0.01, 0.05),
    repair_s=(0.001, 0.2),
    outage_s=(0.005, 0.05, 2.5),
    jump_lasts_s=(0.01, 2),
    stuck_s=60,
)
# Each event goes to one writer several times at once, each time in a call of its own, and is rarely sent again once it is answered.
HEDGED = replace(
    CROWDED,
    name="hedged",
    new=(1,),
    again=(0, 0, 0, 0, 1),
    memory=2,
    travel_s=(0.0001, 0.001),
    copies=((1, 2), (1, 3), (2, 2)),
    writers=(1, 2),
    late=0.0,
    events_per_call=(1,),
    disk_s=(0.001, 0.005, 0.02),
    patience_s=(0.5, 2),
    faults={
        "error_reply": 4,
        "power_loss_after_an_answer": 6,
        "reply_lost": 2,
        "power_loss": 2,
        "power_loss_at_a_disk_step": 2,
        "disk_error": 5,
        "connections_break": 1,
        "redis_fails_over": 1,
        "older_redis_answers": 1,
        "newcomer_at_older_redis": 1,
        "announcements_arrive_late": 1,
    },
    together=(1, 2, 2, 3),
)
# Two writers are asked about the same few events at once; requests stay behind in the network and arrive when the other has opened again.
DUEL = replace(
    CROWDED,
    name="duel",
    senders=(2, 4),
    new=(1,),
    again=(0, 0, 1),
    memory=2,
    travel_s=(0.0001, 0.0004),
    copies=((2, 1), (2, 1), (2, 1), (1, 1)),
    writers=(2, 2),
    late=0.0,
    events_per_call=(1, 50),
    disk_s=(0.0002, 0.001, 0.005, 0.3),
    patience_s=(0.5, 3),
    stuck_s=30,
    number=(8, 20),
    between_s=(0.01, 0.05, 0.3),
    faults={
        "stale_copy_meets_a_reopening": 8,
        "mark_stays_behind": 3,
        "connection_stalls": 2,
        "connections_break": 2,
        "power_loss": 1,
        "kill": 1,
        "redis_fails_over": 1,
        "older_redis_answers": 1,
        "newcomer_at_older_redis": 1,
        "announcements_arrive_late": 1,
        "redis_restarts_empty": 3,
        "redis_restarts_with_data": 5,
    },
    at_a_step=0.7,
    steps=(SENT, EXECUTED, EXECUTED, APPENDED, APPENDED),
)
# A flush at every turn, of many pieces, on a slow machine; crashes and an unwell log while it is under way.
FLUSHING = replace(
    CROWDED,
    name="flushing",
    new=(1, 3, 8),
    again=(0, 1),
    flush_ms=(3, 10, 40),
    turn_us=(200, 1000),
    disk_s=(0.0002, 0.001, 0.005, 0.05),
    faults={
        "kill": 3,
        "power_loss": 3,
        "power_loss_at_a_disk_step": 2,
        "disk_error": 1,
        "produce_outcome_unknown": 3,
        "log_unreachable": 1,
        "rolling_restart": 1,
    },
    at_a_step=0.6,
    steps=(FLUSH_BEGUN, FLUSH_PART, COMMITTED, PRODUCED, FLUSHED),
)
# Claims live for seconds: generations rotate and the horizon passes events while their calls wait.
BRIEF = replace(
    CROWDED,
    name="brief",
    senders=(3, 6),
    batches=(15, 40),
    new=(1, 2, 3, 4),
    again=(0, 1, 2),
    memory=40,
    pause_s=(0.0, 0.1, 0.5, 1.0),
    copies=((1, 1), (1, 2), (2, 1)),
    events_per_call=(1, 5, 5),
    patience_s=(0.5, 8),
    retry_s=(0.01, 0.5),
    flush_ms=(50, 3000, 30_000),
    segment_bytes=2500,
    max_age_s=4,
    max_skew_s=1,
    margin_s=1,
    generation_s=1,
    oldest_s=4,
    old=0.4,
    faults={
        "redis_away_after_a_claim": 6,
        "redis_restarts_empty": 3,
        "redis_fails_over": 2,
        "older_redis_answers": 1,
        "newcomer_at_older_redis": 1,
        "announcements_arrive_late": 1,
        "redis_clock_jumps": 3,
        "writer_clock_jumps": 2,
        "redis_pauses": 1,
        "power_loss": 2,
        "kill": 1,
        "connections_break": 1,
        "log_unreachable": 3,
        "rolling_restart": 1,
        "process_never_returns": 2,
        "disk_is_lost": 1,
    },
    number=(6, 15),
    between_s=(0.3, 3, 6),
    repair_s=(0.01, 2),
    outage_s=(1, 2, 3, 5),
    jump_s=(-3600, -6, -2, 2, 6, 3600),
    jump_lasts_s=(0.1, 10),
    stuck_s=300,
)
# A few hours, with pauses. Events are sent again long after their claims are gone, also to writers whose clock went back.
HOURS = replace(
    SPREAD,
    name="hours",
    senders=(2, 4),
    batches=(40, 90),
    new=(0, 1, 2),
    again=(0, 1, 3),
    pause_s=(0.0, 1.0, 30.0, 150.0),
    flush_ms=(1000, 10_000),
    segment_bytes=2500,
    sweep_s=2.0,
    max_age_s=300,
    max_skew_s=10,
    margin_s=10,
    generation_s=100,
    oldest_s=300,
    faults={
        "redis_restarts_empty": 5,
        "redis_restarts_with_data": 1,
        "redis_fails_over": 2,
        "older_redis_answers": 1,
        "newcomer_at_older_redis": 1,
        "announcements_arrive_late": 1,
        "redis_clock_jumps": 2,
        "redis_pauses": 1,
        "redis_away_after_a_claim": 1,
        "writer_clock_jumps": 5,
        "log_unreachable": 4,
        "produce_outcome_unknown": 1,
        "power_loss": 3,
        "kill": 1,
        "disk_error": 1,
        "catalogue_changes": 1,
        "connections_break": 1,
        "reply_lost": 1,
        "process_never_returns": 1,
        "disk_is_lost": 1,
    },
    number=(15, 40),
    between_s=(1, 60, 300),
    outage_s=(0.3, 40, 900),
    revived=0.3,
    jump_s=(-900, -400, -60, 60, 86_400),
    jump_lasts_s=(60, 1800),
    stuck_s=14_400,
    rater_poll_s=60.0,
)
# What operators do, rightly or by mistake.
OPERATED = replace(
    CROWDED,
    name="operated",
    new=(0, 1),
    again=(1, 2),
    memory=6,
    pause_s=(0.002, 0.05, 0.2),
    writers=(2, 3),
    patience_s=(0.05, 2),
    number=(6, 20),
    between_s=(0.05, 0.3, 1.0),
    stuck_s=300,
    faults={
        "old_copy_starts": 2,
        "closed_by_somebody_else": 3,
        "registry_lost": 2,
        "catalogue_changes": 3,
        "rolling_restart": 2,
        "process_never_returns": 3,
        "disk_is_lost": 2,
        "kill": 1,
        "redis_restarts_empty": 2,
        "power_loss": 1,
        "disk_full": 1,
    },
)

PROFILES = (SPREAD, CROWDED, HEDGED, DUEL, FLUSHING, BRIEF, OPERATED, HOURS)


def profile_of(seed: int) -> Habits:
    return PROFILES[seed % len(PROFILES)]


def seeds_of(profile: Habits, count: int) -> range:
    """The first `count` seeds whose worlds are of this profile."""
    first = PROFILES.index(profile)
    return range(first, first + count * len(PROFILES), len(PROFILES))
