"""Seeded traffic: NDJSON files of events of every kind that a metering edge meets, good and bad, for the configuration in tests/acceptance.

Belongs here: what senders send. Must not know: how it is sent, what must come of it (tests/oracle), the project's own code.

Of each tenant there are two files. In the first the order does not matter: it may be cut, shuffled and sent by many senders at once. The
second is sent after it, by one sender, in order: it holds what depends on which copy came first (the same id with other content, a bad
event sent again, mended). Times are relative to `now`, since a service accepts only what is near its own clock.

    python -m tests.traffic --seed 7 --events 10000 --folder /tmp/traffic
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from zoneinfo import ZoneInfo

DUPLICATES_PER_MILLE = 45  # the same bytes once more
CONFLICTS_PER_MILLE = 5  # the same id, other content
BAD_PER_MILLE = 10  # of every code in turn
MENDED_PER_MILLE = 1  # a bad event's id, now good

MARGIN = timedelta(minutes=10)  # good events keep away from the bounds of time, which move while they are sent
ANCHORS = 90  # event times gather around so many instants, so that counters fill up

SUBJECTS = [
    *(f"customer-{number}" for number in range(14)),
    "Zoë GmbH & Söhne",
    "東京メーター株式会社",
    "🚀👩‍👩‍👧 crew",
    "a\u0301ccent",  # two characters that look like the next one
    "\u00e1ccent",
    'quote " and \\ backslash',
    "tab\tand newline\n",
    " spaces around ",
    "a/b?c=d&e=f#g+h%20i",
    "עברית",
    "0",
    "x" * 256,
    "ß" * 256,
]
SOURCES = ["/edge/worker-1", "/edge/worker-2", "https://éxample.test/äpp", "s"]
REGIONS = ["eu-west", "us-east", "ap-south", "", "région"]
ZONES = ["a", "b", "1", 1, -(2**63), 2**63 - 1]  # the text "1" and the number 1 are one value
MODELS = ["small", "large"]
DIRECTIONS = ["input", "output"]


@dataclass(frozen=True)
class Plan:
    seed: int
    events: int  # lines of all files together
    tenants: tuple[tuple[str, str], ...]  # (name, time zone of its price book)
    now: datetime
    max_age_s: int
    max_skew_s: int

    @property
    def oldest(self) -> datetime:
        return self.now - timedelta(seconds=self.max_age_s) + MARGIN

    @property
    def newest(self) -> datetime:
        return max(self.now, self.now + timedelta(seconds=self.max_skew_s) - MARGIN)


@dataclass(frozen=True)
class Traffic:
    """Lines without their line ends."""

    unordered: dict[str, list[bytes]]  # tenant -> lines
    ordered: dict[str, list[bytes]]

    def write(self, folder: Path) -> None:
        for phase, files in ((1, self.unordered), (2, self.ordered)):
            for tenant, lines in files.items():
                (folder / file_name(tenant, phase)).write_bytes(b"".join(line + b"\n" for line in lines))


def file_name(tenant: str, phase: int) -> str:
    return f"{tenant}-{phase}.ndjson"


def generate(plan: Plan) -> Traffic:
    unordered, ordered = {}, {}
    share = plan.events // len(plan.tenants)
    for number, (tenant, timezone_name) in enumerate(plan.tenants):
        maker = _Maker(plan, timezone_name, random.Random(f"{plan.seed}/{number}"))
        unordered[tenant], ordered[tenant] = maker.files(share)
    return Traffic(unordered, ordered)


class _Maker:
    """The traffic of one tenant."""

    def __init__(self, plan: Plan, timezone_name: str, pick: random.Random) -> None:
        self._plan = plan
        self._pick = pick
        self._anchors = list(self._make_anchors(ZoneInfo(timezone_name)))
        self._number = 0

    def files(self, events: int) -> tuple[list[bytes], list[bytes]]:
        bad = events * BAD_PER_MILLE // 1000
        duplicates = events * DUPLICATES_PER_MILLE // 1000
        conflicts = events * CONFLICTS_PER_MILLE // 1000
        mended = events * MENDED_PER_MILLE // 1000
        good = [self.event() for _ in range(events - bad - duplicates - conflicts - mended)]
        bad_events = [self._spoiled(number) for number in range(bad)]
        split = len(good) - conflicts  # the last few are first sent in the second file, close to their conflicting copies
        lines = [*(event.line(self._pick) for event in good[:split]), *(line for line, _ in bad_events)]
        lines += self._pick.choices(lines, k=duplicates)
        self._pick.shuffle(lines)
        return lines, self._ordered(good, split, conflicts, [fields for _, fields in bad_events[:mended]])

    def _ordered(self, good: list[Fields], split: int, conflicts: int, to_mend: list[Fields]) -> list[bytes]:
        lines = []
        for number in range(conflicts):
            fresh = good[split + number]
            other = fresh if number % 2 else good[self._pick.randrange(split)]
            lines.append(fresh.line(self._pick))
            lines.append(self._contradicted(other).line(self._pick))
        for fields in to_mend:
            mended = self.event()
            mended.attributes["id"], mended.attributes["source"] = fields.attributes.get("id"), fields.attributes.get("source")
            lines.append(mended.line(self._pick))  # still bad where its identity was what was bad
        return lines

    # ---- times

    def _make_anchors(self, zone: ZoneInfo) -> Iterator[datetime]:
        """Month ends and day ends of the tenant's zone and of UTC that lie in the range, and instants all over it."""
        plan = self._plan
        for place in (zone, ZoneInfo("UTC")):
            day = plan.oldest.astimezone(place).replace(hour=0, minute=0, second=0, microsecond=0, tzinfo=None)
            while (midnight := day.replace(tzinfo=place).astimezone(UTC)) <= plan.newest:
                if midnight >= plan.oldest:
                    yield from [midnight] * (15 if day.day == 1 else 1)
                day += timedelta(days=1)
        for _ in range(ANCHORS):
            yield plan.oldest + (plan.newest - plan.oldest) * self._pick.randrange(1000) / 1000

    def time(self) -> datetime:
        """Near an anchor: on it, a microsecond before or after, or within two hours."""
        anchor = self._pick.choice(self._anchors)
        step = self._pick.choice([1_000_000 * 60, 1_000_000 * 7200])
        offset_us = self._pick.choice([0, -1, 1, self._pick.randrange(-step, step), self._pick.randrange(-step, step)])
        return min(max(anchor + timedelta(microseconds=offset_us), self._plan.oldest), self._plan.newest)

    # ---- good events

    def event(self) -> Fields:
        self._number += 1
        event_type = self._pick.choices(list(DATA), [50, 20, 10, 10, 5, 5])[0]
        return Fields(
            {
                "specversion": "1.0",
                "id": f"{self._plan.seed}-{self._number:07d}",
                "source": self._pick.choice(SOURCES),
                "type": event_type,
                "subject": SUBJECTS[0] if self._pick.random() < 0.3 else self._pick.choice(SUBJECTS),
                "time": written_time(self.time(), self._pick),
            },
            DATA[event_type](self._pick),
        )

    def _contradicted(self, event: Fields) -> Fields:
        """The same identity with other content."""
        attributes = dict(event.attributes)
        name = self._pick.choice(["time", "subject", "data"])
        if name == "time":
            attributes["time"] = written_time(
                self._plan.now - timedelta(seconds=self._pick.randrange(60, 3000), microseconds=137), self._pick
            )
        elif name == "subject":
            attributes["subject"] = f"other of {self._number}"
        else:
            attributes["type"] = "http.request"
            return Fields(attributes, {"region": '"eu-west"', "zone": '"contradicted"', "bytes": "77"})
        return Fields(attributes, event.data)

    # ---- bad events

    def _spoiled(self, number: int) -> tuple[bytes, Fields]:
        codes = list(BAD.values())
        makers = codes[number % len(codes)]
        spoil = makers[number // len(codes) % len(makers)]
        event = self.event()
        return spoil(event, self._plan, self._pick), event


@dataclass
class Fields:
    """An event: attributes as Python has them, data with its numbers already written as JSON."""

    attributes: dict[str, object]
    data: dict[str, str]

    def line(self, pick: random.Random) -> bytes:
        ascii_only = pick.random() < 0.3
        members = [f'"{name}":{json.dumps(value, ensure_ascii=ascii_only)}' for name, value in self.attributes.items()]
        members.append('"data":{' + ",".join(f'"{name}":{text}' for name, text in self.data.items()) + "}")
        if pick.random() < 0.2:
            members.append('"traceparent":"00-1","unread":{"deep":[1,2,{"a":null}]}')
        if pick.random() < 0.3:
            pick.shuffle(members)
        return ("{" + ",".join(members) + "}").encode()


def written_time(time: datetime, pick: random.Random) -> str:
    """The same instant in one of the forms of RFC 3339."""
    offset = pick.choice([None, None, None, UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))])
    local = time.astimezone(offset or UTC)
    text = local.strftime("%Y-%m-%dT%H:%M:%S")
    if local.microsecond or pick.random() < 0.2:
        text += f".{local.microsecond:06d}".rstrip("0" if local.microsecond else "")
    return text + ("Z" if offset is None else local.isoformat()[-6:])


# ---- data of each event type: member -> JSON text


def _http_request(pick: random.Random) -> dict[str, str]:
    return {"region": _json(pick.choice(REGIONS), pick), "zone": _json(pick.choice(ZONES), pick), "bytes": whole(pick), "status": "200"}


def _completion(pick: random.Random) -> dict[str, str]:
    return {"model": _json(pick.choice(MODELS), pick), "direction": _json(pick.choice(DIRECTIONS), pick), "tokens": whole(pick)}


def _connections(pick: random.Random) -> dict[str, str]:
    return {"connections": whole(pick, large=2)}


def _storage(pick: random.Random) -> dict[str, str]:
    return {"gb_hours": decimal(pick, 6, 32)}


def _adjustment(pick: random.Random) -> dict[str, str]:
    return {"amount": decimal(pick, 3, 35, signed=True), "reason": _json(pick.choice(["credit", "fee"]), pick)}


def _temperature(pick: random.Random) -> dict[str, str]:
    return {"celsius": decimal(pick, 2, 36, signed=True, only_negative=pick.random() < 0.9)}


DATA: dict[str, Callable[[random.Random], dict[str, str]]] = {
    "http.request": _http_request,
    "llm.completion": _completion,
    "db.sample": _connections,
    "storage.sample": _storage,
    "billing.adjustment": _adjustment,
    "cellar.sample": _temperature,
}


def _json(value: object, pick: random.Random) -> str:
    return json.dumps(value, ensure_ascii=pick.random() < 0.5)


def whole(pick: random.Random, large: int = 5) -> str:
    """A whole number in one of the forms that JSON has for it; now and then of 38 digits."""
    roll = pick.randrange(1000)
    if roll < large:
        return pick.choice(["9" * 38, f'"{"9" * 38}"', str(pick.randrange(10**37, 10**38)), str(2**63 - 1), str(2**64), str(2**53 + 1)])
    number = pick.choice([0, 1, pick.randrange(100), pick.randrange(10_000), pick.randrange(1_000_000)])
    if roll < 900:
        return str(number)
    return pick.choice(
        [f'"{number}"', f"{number}.0", f'"{number}.000"', f"{number}e0", f"{number}e2", f'"{number}E+1"', f"{number * 10}e-1", "-0"]
    )


def decimal(pick: random.Random, places: int, whole_digits: int, *, signed: bool = False, only_negative: bool = False) -> str:
    """A number with at most so many decimal places; now and then as long as it may be."""
    digits = whole_digits if pick.randrange(200) == 0 else pick.randrange(1, 6)
    used = pick.randrange(places + 1)
    text = str(pick.randrange(10**digits)) + (f".{pick.randrange(10**used):0{used}d}" if used else "")
    if signed and (only_negative or pick.random() < 0.5):
        text = f"-{text}"
    return f'"{text}"' if pick.random() < 0.5 else text


# ---- bad events, by the code that they deserve

Spoil = Callable[[Fields, Plan, random.Random], bytes]


def _with(name: str, value: object) -> Spoil:
    def spoil(event: Fields, plan: Plan, pick: random.Random) -> bytes:
        event.attributes[name] = value
        return event.line(pick)

    return spoil


def _without(name: str) -> Spoil:
    def spoil(event: Fields, plan: Plan, pick: random.Random) -> bytes:
        del event.attributes[name]
        return event.line(pick)

    return spoil


def _data(event_type: str, **members: str | None) -> Spoil:
    """An event of that type, members of its data replaced by that JSON, or taken away."""

    def spoil(event: Fields, plan: Plan, pick: random.Random) -> bytes:
        event.attributes["type"] = event_type
        event.data = {**DATA[event_type](pick), **{name: text for name, text in members.items() if text is not None}}
        for name in [name for name, text in members.items() if text is None]:
            del event.data[name]
        return event.line(pick)

    return spoil


def _at(place: Callable[[Plan, random.Random], datetime]) -> Spoil:
    def spoil(event: Fields, plan: Plan, pick: random.Random) -> bytes:
        event.attributes["time"] = written_time(place(plan, pick), pick)
        return event.line(pick)

    return spoil


def _too_late(plan: Plan, pick: random.Random) -> datetime:
    return plan.now - timedelta(seconds=plan.max_age_s + pick.randrange(120, 10 ** pick.randrange(3, 9)))


def _too_early(plan: Plan, pick: random.Random) -> datetime:
    return plan.now + timedelta(seconds=plan.max_skew_s + pick.randrange(1800, 10 ** pick.randrange(4, 9)))


def _raw(text: bytes) -> Spoil:
    return lambda event, plan, pick: text


def _not_utf_8(event: Fields, plan: Plan, pick: random.Random) -> bytes:
    event.attributes["subject"] = "SUBJECT"
    return event.line(pick).replace(b"SUBJECT", b"caf\xe9")


def _half_a_pair(event: Fields, plan: Plan, pick: random.Random) -> bytes:
    event.attributes["subject"] = "SUBJECT"
    return event.line(pick).replace(b"SUBJECT", b"\\ud800 alone")


BAD: dict[str, list[Spoil]] = {
    "too_late": [_at(_too_late)],
    "too_early": [_at(_too_early)],
    "unknown_type": [_with("type", "http.unknown"), _with("type", "HTTP.REQUEST"), _with("type", "")],
    "missing_field": [
        *(_without(name) for name in ("specversion", "id", "source", "type", "subject", "time")),
        *(_with(name, None) for name in ("id", "source", "subject", "time")),
        _data("http.request", region=None),
        _data("http.request", zone=None),
        _data("http.request", bytes=None),
        _data("llm.completion", tokens=None),
        _data("storage.sample", gb_hours=None),
    ],
    "invalid_value": [
        _with("specversion", "0.3"),
        _with("specversion", 1),
        _with("id", ""),
        _with("id", 17),
        _with("source", ["/edge"]),
        _with("subject", ""),
        _with("subject", {"name": "x"}),
        _with("subject", "a\0b"),
        _with("time", "yesterday"),
        _with("time", "2026-01-01"),
        _with("time", "2026-02-30T10:00:00Z"),
        _with("time", 1_764_000_000),
        _data("http.request", bytes='"many"'),
        _data("http.request", bytes="null"),
        _data("http.request", bytes="true"),
        _data("http.request", bytes="[1]"),
        _data("http.request", bytes="-5"),
        _data("http.request", bytes='"-5"'),
        _data("http.request", bytes='""'),
        _data("http.request", bytes='" 1"'),
        _data("http.request", bytes='"1_000"'),
        _data("http.request", bytes='"NaN"'),
        _data("http.request", bytes='"0x10"'),
        _data("http.request", bytes='"\u0661"'),
        _data("http.request", region="true"),
        _data("http.request", region="1.5"),
        _data("http.request", region='["eu"]'),
        _data("http.request", zone=str(2**63)),
        _data("storage.sample", gb_hours="-0.000001"),
        _raw(b"17"),
        _raw(b"null"),
        _raw(b'"event"'),
        _raw(b"[]"),
        _not_utf_8,
        _half_a_pair,
    ],
    "too_many_digits": [
        _data("http.request", bytes="0.5"),
        _data("http.request", bytes='"1.000001"'),
        _data("http.request", bytes="1" + "0" * 38),
        _data("http.request", bytes=f'"1{"0" * 38}"'),
        _data("http.request", bytes="1e38"),
        _data("http.request", bytes="1e400"),
        _data("http.request", bytes="1e-1"),
        _data("llm.completion", tokens="123456789.25"),
        _data("storage.sample", gb_hours="0.0000001"),
        _data("storage.sample", gb_hours="1e-7"),
        _data("storage.sample", gb_hours="1" + "0" * 32),
        _data("billing.adjustment", amount="-" + "9" * 36),
        _data("billing.adjustment", amount="-0.0001"),
    ],
    "too_long": [
        _with("id", "i" * 257),
        _with("source", "s" * 300),
        _with("subject", "ü" * 257),
        _data("http.request", region=f'"{"r" * 257}"'),
        _data("http.request", zone=f'"{"z" * 10_000}"'),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write seeded traffic for tenant demo.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--events", type=int, default=10_000)
    parser.add_argument("--folder", type=Path, required=True)
    arguments = parser.parse_args()
    plan = Plan(arguments.seed, arguments.events, (("demo", "UTC"),), datetime.now(UTC), 86_400, 300)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    generate(plan).write(arguments.folder)


if __name__ == "__main__":
    main()
