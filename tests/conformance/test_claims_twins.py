"""The scripts of dedupe/lua on real servers, and ClaimTable, side by side: every reply to a seeded random sequence of operations is equal.

The callers' clocks lie in the past, so min(server's clock, caller's clock) is the caller's, and every outcome is determined.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
import redis

from dedupe.claim_table import ClaimTable
from dedupe.port import COPY, Identity, Section
from dedupe.scripts import Context, Reclaim, arguments_of, context_arguments, context_of, load
from tests.services import Redis, redis_server, valkey_server

NAMESPACE = "twin:"
HOUR_US = 3_600_000_000
START_US = 1_000_000_000_000_000  # in 2001
IDENTITY = Identity("log", HOUR_US, 3 * HOUR_US)
SEEDS = range(24)
STEPS = 500


@pytest.fixture(scope="module", params=[redis_server, valkey_server], ids=["redis", "valkey"])
def server(request: pytest.FixtureRequest) -> Iterator[Redis]:
    with request.param() as started:
        yield started


@pytest.fixture(params=["hashed", "packed"])
def layout(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def claims_in(layout: str, claims: dict[bytes, bytes]) -> int:
    if layout == "hashed":
        return len(claims)
    groups = {field: entries for field, entries in claims.items() if field not in (b"claims", b"groups")}
    count = sum(len(entries) for entries in groups.values()) // 24
    assert count == int(claims[b"claims"])
    assert all(int.from_bytes(field) < int(claims[b"groups"]) for field in groups)
    return count


class LuaStore:
    """The scripts on a real server."""

    def __init__(self, server: Redis, layout: str) -> None:
        self._client = redis.Redis.from_url(server.url)
        self._client.flushall()
        self._scripts = load(layout)
        for script in self._scripts.values():
            assert self._client.script_load(script.text).encode() == script.sha

    @property
    def replication_id(self) -> str:
        return str(self._client.info("replication")["master_replid"])

    def ask(self, name: str, context: Context, *arguments: object) -> object:
        return self._client.evalsha(
            self._scripts[name].sha.decode(), 0, *context_arguments(NAMESPACE, context), *arguments_of(name, *arguments)
        )

    def change_replication_id(self) -> None:
        """As a replica does when it is promoted: the data stays, the id is a new one."""
        before = self.replication_id
        self._client.execute_command("REPLICAOF", "127.0.0.1", "1")
        self._client.execute_command("REPLICAOF", "NO", "ONE")
        assert self.replication_id != before

    def lose(self, pattern: str) -> None:
        for key in self._client.scan_iter(NAMESPACE + pattern):
            self._client.delete(key)

    def close(self) -> None:
        self._client.close()


@dataclass
class Incarnation:
    """What a writer's process knows of itself."""

    id: bytes
    session: int = 0
    era: bytes = b""
    calls: int = 0
    mark: int = 0


@dataclass
class Writer:
    id: bytes
    now: Incarnation
    old: list[Incarnation] = field(default_factory=list)

    @property
    def closed(self) -> list[tuple[bytes, int]]:
        return [(old.id, old.calls) for old in self.old]


class World:
    """Three writers that do everything a writer may do, and much that it must not, to both stores."""

    def __init__(self, seed: int, lua: LuaStore, seen: Counter[str]) -> None:
        self.random = random.Random(seed)
        self.lua = lua
        self.table = ClaimTable(lambda: 2**52, lua.replication_id)
        self.clock_us = START_US
        self.seen = seen
        self.stale: list[tuple[str, Context, tuple[object, ...]]] = []  # requests whose copies stay in the network
        self.every_writer: list[Writer] = []
        self.writers = [self.new_writer() for _ in range(3)]
        self.digests = [self.random.randbytes(12) for _ in range(40)]

    def new_writer(self) -> Writer:
        self.every_writer.append(Writer(self.random.randbytes(16), Incarnation(self.random.randbytes(16))))
        return self.every_writer[-1]

    def context(self, writer: Writer, incarnation: Incarnation | None = None) -> Context:
        incarnation = incarnation or writer.now
        identity = IDENTITY if self.random.random() < 0.98 else Identity("log", HOUR_US // 2, 3 * HOUR_US)
        if self.random.random() < 0.01:
            identity = identity._replace(log="another log")
        return context_of(identity, writer.id, incarnation.id, incarnation.session)

    def ask(self, name: str, context: Context, *arguments: object) -> list[object]:
        theirs = self.lua.ask(name, context, *arguments)
        ours = getattr(self.table, name)(context, *arguments)
        assert ours == theirs, (name, context, arguments)
        self.seen[f"{name} {ours[0].decode()}"] += 1
        if ours[0] == b"verdicts":
            self.seen.update(f"verdict {code}" for code in ours[4].decode())
        if ours[0] == b"stale_journal":
            self.seen[f"stale_journal {ours[2].decode()}"] += 1
        if self.random.random() < (0.5 if name == "close" else 0.1):
            self.stale.append((name, context, arguments))
        return list(ours)

    def step(self) -> None:
        steps: list[tuple[int, Callable[[Writer], None]]] = [
            (60, self.claim),
            (5, self.resend),
            (8, self.publish_mark),
            (4, self.reconnect),
            (3, self.restart),
            (2, self.restart_from_old_copy),
            (1, self.close),
            (4, self.stale_copy),
            (2, self.zombie),
            (12, self.pass_time),
            (1, self.lose_data),
            (1, self.lose_some_keys),
            (1, self.forget_incarnation),
            (3, self.join),
            (2, self.bury),
        ]
        weights, actions = zip(*steps, strict=True)
        action = self.random.choices(actions, weights)[0]
        action(self.random.choice(self.writers))

    # ---- what writers do

    def sections(self) -> list[Section]:
        sections = []
        for tenant in self.random.sample((1, 2, 70_000), self.random.choice((0, 1, 1, 1, 2))):
            digests = self.random.sample(self.digests, self.random.choice((1, 2, 5, 20)))
            fingerprints = b"".join(bytes((self.random.choice(b"ss\x00"),)) + self.random.choice((b"aaa", b"aaa", b"bbb")) for _ in digests)
            sections.append(Section(tenant, b"".join(digests), fingerprints))
        return sections

    def copies(self, sections: Sequence[Section]) -> bytes:
        digests = sum(len(section.digests) for section in sections) // 12
        if not digests or self.random.random() < 0.7:
            return b""
        contents = (b"saaa", b"saaa", b"sbbb", b"\0aaa")
        places = [self.random.randrange(digests) for _ in range(self.random.choice((1, 2, 30)))]
        return b"".join([COPY.pack(place, self.random.choice(contents)) for place in places])

    def their_clock_us(self) -> int:
        return max(0, self.clock_us + self.random.choice((0, 0, 0, -HOUR_US, HOUR_US, -100 * HOUR_US)))

    def claim(self, writer: Writer) -> None:
        writer.now.calls += 1
        self.claim_number(writer, writer.now.calls)

    def resend(self, writer: Writer) -> None:
        if writer.now.calls:
            self.claim_number(writer, self.random.randint(max(1, writer.now.calls - 3), writer.now.calls))

    def claim_number(self, writer: Writer, number: int) -> None:
        oldest_us = self.clock_us - self.random.randrange(4 * HOUR_US)
        newest_us = oldest_us + self.random.randrange(2 * HOUR_US)
        sections = self.sections()
        copies = self.copies(sections)
        reply = self.ask(
            "claim", self.context(writer), number, writer.now.mark, self.their_clock_us(), oldest_us, newest_us, sections, copies
        )
        if copies and reply[0] == b"verdicts":
            self.seen.update(f"copy {code}" for code in cast(bytes, reply[4])[-(len(copies) // COPY.size) :].decode())
        if self.random.random() < 0.5:
            writer.now.mark = max(writer.now.mark, number - 1)
        self.react(writer, reply)

    def publish_mark(self, writer: Writer) -> None:
        writer.now.mark = self.random.randint(0, writer.now.calls)
        self.react(writer, self.ask("claim", self.context(writer), 0, writer.now.mark, self.clock_us, 0, 0, []))

    def react(self, writer: Writer, reply: list[object]) -> None:
        """Mostly as a writer ought to; otherwise nothing would ever open."""
        if reply[0] in (b"rebuild", b"rejoin", b"stale", b"zombie") and self.random.random() < 0.8:
            if reply[0] == b"zombie":
                self.restart(writer)
            else:
                self.reconnect(writer)

    def reconnect(self, writer: Writer) -> None:
        writer.now.session += 1
        reply = self.ask("hello", self.context(writer), self.their_clock_us())
        self.ask("publish", self.context(writer), max(writer.now.mark, 0), writer.closed)
        if reply[0] == b"hello" and not (reply[2] and reply[3]):
            self.join(writer)

    def restart(self, writer: Writer) -> None:
        """Calls above the mark are lost with the torn tail, some of them."""
        writer.now.calls = self.random.randint(writer.now.mark, writer.now.calls)
        writer.old.append(writer.now)
        writer.now = Incarnation(self.random.randbytes(16))
        self.reconnect(writer)

    def restart_from_old_copy(self, writer: Writer) -> None:
        """A journal without its last incarnation, or with fewer calls than were marked."""
        copy = Writer(writer.id, Incarnation(self.random.randbytes(16), 1), list(writer.old))
        if self.random.random() < 0.5:
            copy.old = copy.old[:-1]
        elif copy.old:
            last = copy.old[-1]
            copy.old[-1] = Incarnation(last.id, calls=max(0, last.calls - 1))
        self.ask("hello", self.context(copy), self.clock_us)
        self.ask("publish", self.context(copy), 0, copy.closed)

    def close(self, writer: Writer) -> None:
        context = self.context(writer)
        if self.random.random() < 0.2:
            context = context._replace(session=context.session - 1)
        reply = self.ask("close", context, writer.now.calls)
        if reply[0] != b"closed":
            return
        writer.now.mark = writer.now.calls
        if self.random.random() < 0.7:
            self.restart(writer)

    def bury(self, writer: Writer) -> None:
        """Somebody declares its disk lost, now and then while it lives on, or once more."""
        if self.random.random() < 0.4:
            writer = self.random.choice(self.every_writer)
        nobody = self.context(writer)._replace(incarnation=bytes(16), session=0)
        through = self.random.choice([b"", writer.now.id, writer.now.id, *(old.id for old in writer.old)])
        for_good = self.random.random() < 0.5
        reply = self.ask("bury", nobody, for_good, through, self.random.randint(0, writer.now.calls + 1) if through else 0)
        if for_good and reply[0] == b"buried":
            self.seen["buried for good"] += 1
            self.claim(writer)
            if writer in self.writers:
                self.writers[self.writers.index(writer)] = self.new_writer()

    def stale_copy(self, writer: Writer) -> None:
        if self.stale:
            name, context, arguments = self.stale.pop(self.random.randrange(len(self.stale)))
            self.ask(name, context, *arguments)

    def zombie(self, writer: Writer) -> None:
        if writer.old:
            old = self.random.choice(writer.old)
            old.session += self.random.randint(0, 1)
            self.ask("hello", self.context(writer, old), self.clock_us)
            self.ask("claim", self.context(writer, old), old.calls + 1, 0, self.clock_us, self.clock_us, self.clock_us, self.sections())
            self.ask("publish", self.context(writer, old), old.mark, [])
            self.ask("close", self.context(writer, old), old.calls + 1)
            self.ask("joined", self.context(writer, old), writer.now.era, old.mark, 0, 0, {writer.id})
            self.ask("reclaim", self.context(writer, old), writer.now.era, self.clock_us, [])

    def pass_time(self, writer: Writer) -> None:
        self.clock_us += self.random.choice((1, HOUR_US // 10, HOUR_US // 2, HOUR_US, 2 * HOUR_US, 2 * HOUR_US, 30 * HOUR_US))

    # ---- losing data, joining

    def lose_data(self, writer: Writer) -> None:
        self.lua.change_replication_id()
        self.table.replication_id = self.lua.replication_id
        for each in self.writers:
            if self.random.random() < 0.7:
                self.reconnect(each)

    def lose_some_keys(self, writer: Writer) -> None:
        """As a failover may, at the same moment as the id changes; `open` is right again only when all have joined."""
        self.lua.change_replication_id()
        self.table.replication_id = self.lua.replication_id
        if self.random.random() < 0.5:
            self.lua.lose("claims:*")
            self.lua.lose("tenants:*")  # finding claims without them is for a test of its own
            self.table._claims.clear()
            self.table.size = 0
        if self.random.random() < 0.5:
            self.lua.lose("writer:*")
            self.table._writers.clear()
        if self.random.random() < 0.5:
            for key in ("gen", "low"):
                self.lua.lose(key)
            self.table._gen = None
        if self.random.random() < 0.5:
            self.lua.lose("incarnations")
            self.table._interned.clear()

    def forget_incarnation(self, writer: Writer) -> None:
        """Its w: alone: its claims are pending for others from now on, and it has to join again itself."""
        incarnation = self.random.choice([writer.now, *writer.old])
        self.lua.lose("w:" + incarnation.id.hex())
        self.table._w.pop(incarnation.id, None)

    def join(self, writer: Writer) -> None:
        incarnations = [*(old.id for old in writer.old), writer.now.id]
        opened = self.table._open
        last = self.random.choice((b"", opened.branch, opened.branch, b"b" * 16))
        if last not in (b"", opened.branch) and opened.replication_id == self.table.replication_id:
            self.seen["an open store was left"] += 1
        under_way = self.table._join
        if under_way.faster and under_way.replication_id == self.table.replication_id != opened.replication_id:
            self.seen["a faster join in a third branch"] += last not in (b"", under_way.branch, under_way.found)
        reply = self.ask("join", self.context(writer), self.random.randbytes(16), last, incarnations)
        if reply[0] == b"joining":
            self.seen["faster" if reply[4] else "whole"] += 1
        if reply[0] == b"joining":
            writer.now.era = reply[1] if isinstance(reply[1], bytes) else b""
        for _ in range(self.random.randint(0, 3)):
            sections = [
                Reclaim(
                    tenant,
                    self.clock_us // HOUR_US - self.random.randint(-2, 6),
                    self.clock_us - self.random.randrange(4 * HOUR_US),
                    digests,
                    fps,
                )
                for tenant, digests, fps in self.sections()
            ]
            self.ask("reclaim", self.context(writer), writer.now.era, self.their_clock_us(), sections)
        members = self.random.sample(self.writers, self.random.choice((2, 3, 3)))
        horizon_us = self.clock_us - 5 * HOUR_US if self.random.random() < 0.2 else 0
        elsewhere = self.random.choice((0, 0, 0, 1))
        self.ask("joined", self.context(writer), writer.now.era, writer.now.mark, horizon_us, elsewhere, {one.id for one in members})


def test_every_reply_is_equal(server: Redis, layout: str) -> None:
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        lua = LuaStore(server, layout)
        world = World(seed, lua, seen)
        for step in range(STEPS):
            try:
                world.step()
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, step {step}") from error
            if step % 50 == 0:
                check_what_is_kept(world, server)
        check_what_is_kept(world, server)
        check_size(world, server, layout)
        lua.close()
    print(sorted(seen.items()))
    missing = EXPECTED - set(seen)
    assert not missing, f"never reached: {sorted(missing)}"


def enter_alone(world: World) -> Context:
    context = context_of(IDENTITY, b"w" * 16, b"i" * 16, 1)
    world.ask("hello", context, START_US)
    world.ask("publish", context, 0, [])
    assert world.ask("join", context, b"e" * 16, b"", []) == [b"joining", b"e" * 16, 1, b"e" * 16, 0]
    assert world.ask("joined", context, b"e" * 16, 0, 0, 0, {context.writer}) == [b"joined", 1, 0]
    return context


def check_size(world: World, server: Redis, layout: str) -> None:
    client = redis.Redis.from_url(server.url)
    assert world.table.size == sum(claims_in(layout, client.hgetall(key)) for key in client.scan_iter(NAMESPACE + "claims:*"))
    client.close()


KEPT = ["writer", "session", "closed", "mark", "executions", "base"]


def check_what_is_kept(world: World, server: Redis) -> None:
    """What no reply of the moment shows decides later ones: the newest times, the horizon, and all that is known of incarnations."""
    table = world.table
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        assert {int(g): int(newest) for g, newest in client.hgetall(NAMESPACE + "newest").items()} == table._newest
        assert int(client.get(NAMESPACE + "horizon") or 0) == table._horizon
        joined = [writer for key in client.scan_iter(NAMESPACE + "joined:*") for writer in client.smembers(key)]
        assert sorted(joined) == sorted(writer.hex() for writer in table._joined)
        numbers = client.hgetall(NAMESPACE + "incarnations")
        assert {int(number): bytes.fromhex(incarnation) for number, incarnation in numbers.items()} == table._interned
        writers = {key.rsplit(":", 1)[1]: client.get(key) for key in client.scan_iter(NAMESPACE + "writer:*")}
        assert writers == {writer.hex(): incarnation.hex() for writer, incarnation in table._writers.items()}
        ws = {key.rsplit(":", 1)[1]: client.hmget(key, KEPT) for key in client.scan_iter(NAMESPACE + "w:*")}
    assert {writer for writer, *_ in ws.values()} <= {writer.id.hex() for writer in world.every_writer}
    assert {incarnation: kept_as_numbers(values) for incarnation, (_, *values) in ws.items()} == {
        incarnation.hex(): [w.session, w.closed, w.mark, w.executions, w.base] for incarnation, w in table._w.items()
    }


def kept_as_numbers(values: Sequence[str | None]) -> list[int | None]:
    """An absent session or closed is no number; an absent mark or count is none yet."""
    return [absent if value is None else int(value) for value, absent in zip(values, (None, None, 0, 0, -1), strict=True)]


# Every reply that a script can give, and every verdict.
EXPECTED = {
    *("hello hello", "hello zombie", "hello stale", "hello wrong_log", "hello wrong_identity"),
    *("publish published", "publish zombie", "publish stale", "publish rejoin", "publish stale_journal"),
    *("stale_journal unknown", "stale_journal mark", "stale_journal closed", "stale_journal missing"),
    *(
        "an open store was left",
        "faster",
        "a faster join in a third branch",
        "whole",
        "join joining",
        "join zombie",
        "join stale",
        "join rejoin",
        "join wrong_log",
        "join wrong_identity",
    ),
    *("reclaim reclaimed", "reclaim rebuild", "reclaim zombie", "reclaim stale"),
    *("joined joined", "joined rebuild", "joined zombie", "joined stale"),
    *("claim verdicts", "claim late", "claim marked", "claim rebuild", "claim rejoin", "claim zombie", "claim stale"),
    *("verdict g", "verdict d", "verdict p", "verdict c"),
    *("copy d", "copy p", "copy c"),
    *("close closed", "close zombie", "close stale"),
    *("bury buried", "bury wrong_log", "buried for good"),
}


def test_a_call_of_many_chunks(server: Redis, layout: str) -> None:
    """More digests than one HMGET or HSET takes, half of them known, over two generations."""
    lua = LuaStore(server, layout)
    world = World(1, lua, Counter())
    context = enter_alone(world)
    digests = [world.random.randbytes(12) for _ in range(10_000)]
    first, second = digests[:7_500], digests[2_500:]
    for number, some in ((1, first), (2, second)):
        section = Section(1, b"".join(some), b"".join([b"f" + digest[:3] for digest in some]))
        clock_us = START_US + number * HOUR_US
        reply = world.ask("claim", context, number, 0, clock_us, clock_us, clock_us, [section])
        assert reply[4] == (b"" if number == 1 else b"d" * 5_000 + b"g" * 2_500)
    lua.close()


def test_claims_are_found_however_many_come(server: Redis, layout: str) -> None:
    """Calls of every size, a third of their events known, from one claim to thousands and over three generations; then a rebuild."""
    lua = LuaStore(server, layout)
    world = World(3, lua, Counter())
    pick, context = world.random, enter_alone(world)
    known: list[bytes] = []
    for number in range(1, 241):
        some = pick.sample(known, min(len(known), pick.randrange(1, 40)))
        some += [pick.randbytes(12) for _ in range(pick.choice((0, 1, 2, 5, 80, 200)))]
        pick.shuffle(some)
        known += set(some) - set(known)
        clock_us = START_US + number * HOUR_US // 120
        sections = [Section(1 + number % 2, b"".join(some), b"ffff" * len(some)), Section(3, pick.randbytes(12), b"ffff")]
        world.ask("claim", context, number, pick.randrange(number), clock_us, clock_us, clock_us, sections)
    check_size(world, server, layout)
    assert len(known) > 5_000
    lua.lose("open")
    status, era, *_ = world.ask("join", context, b"f" * 16, b"", [])
    assert status == b"joining"
    again = b"".join(pick.sample(known, 4_000))
    for _ in range(2):  # the second time over what is there
        origin = (START_US // HOUR_US, START_US)
        section = Reclaim(1, *origin, again, bytes(4 * len(again) // 12))
        assert world.ask("reclaim", context, era, START_US + 2 * HOUR_US, [section])[0] == b"reclaimed"
    check_size(world, server, layout)
    lua.close()


def test_what_lies_across_two_claims_is_none(server: Redis, layout: str) -> None:
    """Where claims lie side by side, a digest may look like the end of one and the beginning of the next."""
    lua = LuaStore(server, layout)
    world = World(4, lua, Counter())
    context = enter_alone(world)
    first, second = b"1" * 12, b"2" * 12
    across = b"ffff" + second[:8]
    for number, digests in enumerate(([first, second], [across], [across, second], [b"f" * 12], [b"f" * 12, first]), 1):
        section = Section(1, b"".join(digests), b"ffff" * len(digests))
        reply = world.ask("claim", context, number, number - 1, START_US, START_US, START_US, [section])
        assert reply[4] == (b"dd" if number in (3, 5) else b"")
    lua.close()


def test_the_first_joiner_finds_claims_that_nothing_names(server: Redis, layout: str) -> None:
    """After a failover the sets that name the claims may be lost."""
    lua = LuaStore(server, layout)
    world = World(2, lua, Counter())
    context = enter_alone(world)
    world.ask("claim", context, 1, 0, START_US, START_US, START_US, [Section(1, b"d" * 12, b"ffff")])
    lua.lose("tenants:*")
    lua.lose("newest")
    lua.lose("gen")
    lua.change_replication_id()
    assert lua.ask("join", context, b"f" * 16, b"", []) == [b"joining", b"f" * 16, 1, b"f" * 16, 0]
    client = redis.Redis.from_url(server.url)
    assert list(client.scan_iter(NAMESPACE + "claims:*")) == []
    client.close()
    lua.close()


def claimed_by_many(world: World, tenants: int) -> Context:
    """Two generations of claims, in hashes of their own for each tenant."""
    context = enter_alone(world)
    for number in (1, 2):
        clock_us = START_US + number * HOUR_US
        sections = [Section(tenant, b"%012d" % number, b"ffff") for tenant in range(tenants)]
        world.ask("claim", context, number, 0, clock_us, clock_us, clock_us, sections)
    return context


def first_to_join(world: World, context: Context) -> str:
    world.lua.change_replication_id()
    reply = cast(list[object], world.lua.ask("join", context, b"f" * 16, b"", []))
    assert reply[0] == b"joining" and reply[2] == 1
    return "faster" if reply[4] else "whole"


LAST = START_US // HOUR_US + 2


@pytest.mark.parametrize(
    "spoil",
    [
        ("DEL", "open"),
        ("HSET", "open", "replid", "x" * 40),
        ("HSET", "open", "branch", "x" * 16),
        ("DEL", "join"),
        ("DEL", "gen"),
        ("DEL", "low"),
        ("DEL", "newest"),
        ("DEL", "incarnations"),
        ("HDEL", "newest", LAST),
        ("DEL", f"tenants:{LAST}"),
        ("SREM", f"tenants:{LAST}", 1),
        ("DEL", f"claims:{LAST}:1"),
        ("COPY", f"claims:{LAST}:1", f"{NAMESPACE}claims:{LAST}:9"),
        ("RENAME", f"claims:{LAST}:1", f"{NAMESPACE}claims:{LAST}:9"),
    ],
    ids=lambda spoil: " ".join(map(str, spoil)),
)
def test_a_store_that_lost_any_of_its_keys_is_claimed_again_as_a_whole(server: Redis, layout: str, spoil: tuple[str | int, ...]) -> None:
    """Else what nothing leads to any more would be granted once more."""
    lua = LuaStore(server, layout)
    world = World(5, lua, Counter())
    context = claimed_by_many(world, 3)
    command, key, *arguments = spoil
    server.ask(str(command), f"{NAMESPACE}{key}", *map(str, arguments))
    assert first_to_join(world, context) == "whole"
    lua.close()


def test_more_keys_than_are_looked_through_at_once(server: Redis, layout: str) -> None:
    """All of them are seen when it is asked whether they fit together, and all are deleted where a store is claimed again as a whole."""
    lua = LuaStore(server, layout)
    world = World(6, lua, Counter())
    context = claimed_by_many(world, 2_500)
    assert first_to_join(world, context) == "faster"
    lua.lose("open")
    assert first_to_join(world, context) == "whole"
    with redis.Redis.from_url(server.url) as client:
        assert [key for pattern in ("claims", "tenants") for key in client.scan_iter(f"{NAMESPACE}{pattern}:*")] == []
    lua.close()


def evict(server: Redis, key: str) -> None:
    """This key and no other."""
    with redis.Redis.from_url(server.url) as client:
        client.expire(NAMESPACE + key, 86_400)
        client.config_set("maxmemory-policy", "volatile-lru")
        client.config_set("maxmemory", 1)
        while client.exists(NAMESPACE + key):
            pass
        client.config_set("maxmemory", 0)
        client.config_set("maxmemory-policy", "noeviction")


def test_what_was_evicted_is_seen_whatever_was_evicted_before(server: Redis, layout: str) -> None:
    """Also a key whose lack shows nowhere else: without it the claims of a writer that is gone would be pending for ever."""
    server.ask("CONFIG", "RESETSTAT")
    lua = LuaStore(server, layout)
    world = World(7, lua, Counter())
    context = claimed_by_many(world, 1)
    others = [context_of(IDENTITY, name * 16, name * 16, 1) for name in (b"1", b"2", b"3")]
    for other in others:
        lua.ask("hello", other, START_US)
    ws = [f"w:{other.incarnation.hex()}" for other in others]

    def is_open() -> bool:
        return bool(cast(list[object], lua.ask("hello", context, START_US))[2])

    def joined() -> object:
        with redis.Redis.from_url(server.url) as client:
            return lua.ask("joined", context, client.hget(f"{NAMESPACE}join", "era"), 0, 0, 0, {context.writer})

    assert first_to_join(world, context) == "faster" and joined() == [b"joined", 1, 0]
    evict(server, ws[0])
    assert first_to_join(world, context) == "whole" and joined() == [b"joined", 1, 0]
    assert is_open(), "what was evicted before the claims were begun is no reason to begin once more"
    server.ask("CONFIG", "RESETSTAT")
    assert first_to_join(world, context) == "faster" and joined() == [b"joined", 1, 0]
    evict(server, ws[1])
    assert not is_open(), "as many as had been evicted before the claims were begun"
    assert lua.ask("join", context, b"f" * 16, b"", []) == [b"joining", b"f" * 16, 1, b"f" * 16, 0]
    evict(server, ws[2])
    assert not is_open() and joined() == [b"rebuild"], "while they were claimed again"
    server.ask("CONFIG", "RESETSTAT")
    lua.close()


def test_an_open_store_without_its_join_has_lost_a_key(server: Redis, layout: str) -> None:
    """Also where the count of evicted keys was reset since."""
    lua = LuaStore(server, layout)
    context = claimed_by_many(World(8, lua, Counter()), 1)
    assert cast(list[object], lua.ask("hello", context, START_US))[2] == 1
    lua.lose("join")
    assert cast(list[object], lua.ask("hello", context, START_US))[2] == 0
    lua.close()


def test_at_the_very_limit_a_generation_stays_in_whatever_order_claims_came(server: Redis, layout: str) -> None:
    lua = LuaStore(server, layout)
    world = World(9, lua, Counter())
    context = enter_alone(world)
    world.ask("claim", context, 1, 0, START_US, START_US, START_US, [Section(1, b"x" * 12, b"ffff")])
    lua.lose("open")
    world.table._open.replication_id = None
    era = world.ask("join", context, b"f" * 16, b"", [])[1]
    for hours in (0, 2, 1):
        newest_us = START_US + hours * HOUR_US
        section = Reclaim(1, newest_us // HOUR_US, newest_us, b"%012d" % hours, b"ffff")
        world.ask("reclaim", context, era, START_US + min(2, 2 * hours) * HOUR_US, [section])
    world.ask("joined", context, era, 0, 0, 0, {context.writer})
    for number, hours, horizon_us in ((2, 3, 0), (3, 4, START_US)):
        now_us = START_US + hours * HOUR_US
        reply = world.ask("claim", context, number, 0, now_us, now_us, now_us, [Section(1, b"%012d" % 1, b"ffff")])
        assert reply[3:] == [horizon_us, b"d"]
    with redis.Redis.from_url(server.url) as client:
        live = {key.decode().rsplit(":", 1)[1] for key in client.scan_iter(NAMESPACE + "tenants:*")}
    assert live == {str(START_US // HOUR_US + hours) for hours in (1, 2)}, "nothing is left behind of what went"
    lua.close()
