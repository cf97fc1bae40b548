"""The simulated PostgreSQL beside a real one: the same statements in two sessions, and the same records through the real rater.

After each step it is compared what the statement answered, with which class of error it failed, or that it waits for the other session; at
the end, all tables. Numbers that a sequence gave out are told by what they stand for: a real server takes one for a conflicting insert too.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from io import BytesIO
from typing import Any, NamedTuple

import asyncpg

from rater.migrate import migrate
from rater.postgres import Ledger
from rater.source import Received
from rater.statements import statements
from tests.integration.rating import Writer
from tests.integration.test_rater import at_random, book
from tests.simulation.loop import run
from tests.simulation.postgres import SimulatedPostgres
from tests.simulation.postgres_statements import STATEMENTS, TABLES, TOPICS, by_text

TEXTS = {name: text for topic in TOPICS for name, text in statements(topic).items()}
WRITERS = (bytes(16), b"\1" * 16)
SERIES = ("1" * 32, "2" * 32)
LINES = ("a" * 32, "b" * 32)
WINDOWS = (3600, 7200)
SCRIPTS = 60

Connect = Callable[[], Awaitable[Any]]


def test_every_statement_of_the_rater_is_interpreted() -> None:
    assert set(TEXTS) == set(STATEMENTS)
    assert set(by_text()) == {*TEXTS.values(), "COPY records", "COPY folded text"}


# ---- scripts


class Step(NamedTuple):
    session: int
    do: str  # begin, commit, roll back, or a statement's name
    arguments: tuple[Any, ...] = ()


def script(seed: int) -> list[Step]:
    """Transactions of two sessions, interleaved."""
    rng = random.Random(seed)
    names = rng.sample(list(_ARGUMENTS), 6)  # few, so that the two meet
    lives = [_life(rng, session, names) for session in (0, 1)]
    steps: list[Step] = []
    while any(lives):
        life = rng.choice([life for life in lives if life])
        steps.append(life.pop(0))
    return steps


def _life(rng: random.Random, session: int, names: Sequence[str]) -> list[Step]:
    steps: list[Step] = []
    for _ in range(rng.randint(1, 3)):
        steps.append(Step(session, "begin"))
        steps += [Step(session, name, _arguments(rng, name)) for name in rng.choices(names, k=rng.randint(1, 5))]
        steps.append(Step(session, rng.choice(("commit", "commit", "roll back"))))
    return steps


def _some(rng: random.Random, *choices: Sequence[Any]) -> list[list[Any]]:
    """Columns of some distinct rows."""
    every = [()]
    for choice in choices:
        every = [(*row, value) for row in every for value in choice]
    return [list(column) for column in zip(*rng.sample(every, rng.randint(1, 2)), strict=True)]


def _one(rng: random.Random, *choices: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(rng.choice(choice) for choice in choices)


def _chain(rng: random.Random) -> tuple[Any, ...]:
    return _one(rng, WRITERS, (0, 1))


def _parked(rng: random.Random) -> tuple[Any, ...]:
    return (*_chain(rng), rng.choice((1, 2)), *_stray(rng))


def _stray(rng: random.Random) -> tuple[Any, ...]:
    reason, sound, missing = _one(rng, ("why", "chosen"), (True, False), (True, False))
    return (rng.choice(SERIES), reason, sound, missing, "log", "s0", rng.choice((1, 2)), ["h"], [b"v"], b"value")


def _series(rng: random.Random) -> tuple[Any, ...]:
    (keys,) = _some(rng, SERIES)
    count = len(keys)
    return (keys, [rng.choice((1, 2))] * count, [rng.choice((1, 2))] * count, ["subject"] * count, ['["eu","a"]'] * count)


def _lines(rng: random.Random) -> tuple[Any, ...]:
    (keys,) = _some(rng, LINES)
    count, quantity = len(keys), str(rng.randint(1, 9))
    amount = rng.choice((None, "1.50"))
    row = (rng.choice((1, 2)), "1970-01", "subject", "m1", 0, '{"zone":"a","at":"b"}', quantity, amount)
    return (keys, *([value] * count for value in row))


def _tallies(rng: random.Random) -> tuple[Any, ...]:
    columns = _some(rng, (1, 2), WRITERS, ("accepted", "received"))
    return (*columns, [rng.randint(1, 5) for _ in columns[0]])


def _positions(rng: random.Random) -> tuple[Any, ...]:
    (streams,) = _some(rng, ("s0", "s1"))
    return ("log", streams, [rng.randint(1, 4) for _ in streams])


def _record(rng: random.Random) -> tuple[Any, ...]:
    return (*_chain(rng), rng.choice((1, 2)), rng.choice(SERIES), "log", "s0", 1, ["h"], [b"v"], b"value")


_MONTH = (0, 2_678_400)
_ARGUMENTS: dict[str, Callable[[random.Random], tuple[Any, ...]]] = {
    "chains_add": lambda rng: tuple(_some(rng, WRITERS, (0, 1))),
    "chains_lock": lambda rng: tuple(_some(rng, WRITERS, (0, 1))),
    "chains_store": lambda rng: tuple([value] for value in (*_chain(rng), rng.randint(0, 3), rng.choice((None, "fork")))),
    "records_known": lambda rng: tuple(_some(rng, WRITERS, (0, 1), (1, 2))),
    "parked_next": lambda rng: (*_chain(rng), 0, 10),
    "parked_add": _parked,
    "stray_add": _stray,
    "stray_accept": lambda rng: _one(rng, (1, 2, 3)),
    "parked_applied": lambda rng: (),
    "parked_settle": lambda rng: (*_chain(rng), rng.choice((1, 2))),
    "chains_due": lambda rng: (),
    "chain_release": _chain,
    "parked_accept": _chain,
    "parked_rivals": _chain,
    "parked_reject": lambda rng: (),
    "parked_choose": lambda rng: ("chosen",),
    "parked_leave_out": lambda rng: (*_chain(rng), rng.choice((0, 1)), "behind", "chosen"),
    "parked_take_up": lambda rng: (*_chain(rng), "behind", rng.choice((None, 1, 2)), "chosen"),
    "parked_give_up": lambda rng: (*_chain(rng), "behind"),
    "positions_of": lambda rng: ("log", *_some(rng, ("s0", "s1"))),
    "positions_store": _positions,
    "progress_store": lambda rng: ("log", rng.randint(1, 9), *_positions(rng)[1:]),
    "meters_turn": lambda rng: (),
    "meters_known": lambda rng: (),
    "meters_add": lambda rng: (*_one(rng, ("m2", "m3", "m4")), "sum", 0, 3600, ["d"]),
    "meter_named": lambda rng: _one(rng, ("m1", "m3")),
    "meter_hashes_add": lambda rng: _one(rng, (1, 2), ("x", "y")),
    "tenants_add": lambda rng: tuple(_some(rng, ("t1", "t3", "t4"))),
    "tenants_lock": lambda rng: tuple(_some(rng, ("t1", "t2", "t3"))),
    "series_add": _series,
    "folded_make": lambda rng: _one(rng, SERIES, WINDOWS, (1, 2, 3)),  # and filled
    "usage_add": lambda rng: (),
    "usage_raise": lambda rng: (),
    "tallies_add": _tallies,
    "book_numbered": lambda rng: (1,),
    "periods_of": lambda rng: tuple(_some(rng, (1, 2), ("1970-01", "1970-02"))),
    "periods_add": lambda rng: tuple([value] for value in (*_one(rng, (1, 2), ("1970-01", "1970-02")), *_MONTH, rng.choice((None, 1)))),
    "lines_add": _lines,
    "lines_lock": lambda rng: tuple(_some(rng, LINES)),
    "lines_store": lambda rng: ([rng.choice(LINES)], [str(rng.randint(1, 9))], [rng.choice((None, "2.25"))]),
    "tenant_lock_alone": lambda rng: _one(rng, ("t1", "t2", "t3")),
    "book_find": lambda rng: _one(rng, (1, 2), ("h1", "h2")),
    "book_add": lambda rng: (*_one(rng, (1, 2), ("h2", "h3")), '{"b":1,"aa":"x"}'),
    "tenant_set_book": lambda rng: (rng.choice((1, 2)), 1),
    "periods_of_tenant": lambda rng: _one(rng, (1, 2)),
    "period_set_book": lambda rng: (*_one(rng, (1, 2), ("1970-01", "1970-02")), 1),
    "period_set_bounds": lambda rng: (*_one(rng, (1, 2), ("1970-01", "1970-02")), 3600, 7200),
    "periods_remove": lambda rng: _one(rng, (1, 2)),
    "lines_remove": lambda rng: _one(rng, (1, 2), (None, "1970-01")),
    "usage_bounds": lambda rng: _one(rng, (1, 2)),
    "usage_of_period": lambda rng: (*_one(rng, (1, 2)), *_MONTH),
    "totals_of_period": lambda rng: _one(rng, (1, 2), ("1970-01", "1970-02")),
    "lines_of_period": lambda rng: _one(rng, (1, 2), ("1970-01", "1970-02")),
    "COPY records": _record,
}
_HIDDEN = {"tenants_lock": 0, "tenant_lock_alone": 0, "meter_named": 0, "parked_next": 0, "book_add": 0}  # statement -> column of a number
_RECORD_COLUMNS = ("writer", "partition", "n", "hash", "log", "stream", "next_position", "header_names", "header_values", "value")


def _arguments(rng: random.Random, name: str) -> tuple[Any, ...]:
    return _ARGUMENTS[name](rng)


PREPARED = (
    Step(0, "tenants_add", (["t1"],)),
    Step(0, "tenants_add", (["t2"],)),
    Step(0, "meters_add", ("m1", "sum", 0, 3600, ["d"])),
    Step(0, "meters_add", ("m2", "max", 0, 3600, [])),
    Step(0, "book_add", (1, "h1", '{"b": 1, "aa": "x"}')),
    Step(0, "chains_add", ([WRITERS[0]], [0])),
    Step(0, "series_add", ([SERIES[0]], [1], [1], ["subject"], ["[]"])),
    Step(0, "periods_add", ([1], ["1970-01"], [0], [2_678_400], [1])),
    Step(0, "lines_add", ([LINES[0]], [1], ["1970-01"], ["subject"], ["m1"], [0], ["{}"], ["5"], ["2.50"])),
)


# ---- playing them


class Session:
    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.block: Any = None
        self.under_way: asyncio.Task[Any] | None = None
        self.parked: list[int] = []  # numbers that the last parked_next answered

    async def do(self, step: Step) -> Any:
        if step.do == "begin":
            self.block = self.connection.transaction()
            await self.block.__aenter__()
            return None
        if step.do == "commit":
            await self.block.__aexit__(None, None, None)
            return None
        if step.do == "roll back":
            with contextlib.suppress(_RolledBack):
                await self.block.__aexit__(_RolledBack, _RolledBack(), None)
            return None
        return await self._statement(step.do, step.arguments)

    async def _statement(self, name: str, arguments: tuple[Any, ...]) -> Any:
        connection = self.connection
        if name == "COPY records":
            await connection.copy_records_to_table("records", records=[arguments], columns=_RECORD_COLUMNS)
            return None
        if name == "folded_make":
            series, start, value = arguments
            rows = f"f\t{series}\t{start}\t{value}\t1\n" if start == WINDOWS[0] else f"t\t{series}\t{start}\t{value}\t1\n"
            await connection.copy_to_table("folded", source=BytesIO(rows.encode()), format="text")
            return None
        if name in ("parked_applied", "parked_reject", "parked_choose"):
            arguments = (self.parked, *arguments)
        if name in ("chain_release", "stray_accept", "parked_take_up", "parked_give_up"):
            return await connection.execute(TEXTS[name], *arguments)
        rows = await connection.fetch(TEXTS[name], *arguments)
        if name == "parked_next":
            self.parked = [row["id"] for row in rows]
        hidden = _HIDDEN.get(name)
        shown = [tuple(value for at, value in enumerate(tuple(row)) if at != hidden) for row in rows]
        return sorted(map(repr, shown))


class _RolledBack(Exception):
    """Ends a transaction."""


async def play(sessions: Sequence[Session], steps: Sequence[Step], rest: Callable[[Sequence[Session]], Awaitable[None]]) -> list[Any]:
    """What happened after each step: (what was done, what each session's statement came to)."""
    told: list[Any] = []
    for step in [*steps, Step(0, "commit"), Step(1, "commit")]:
        session = sessions[step.session]
        if session.under_way is not None or (step.do == "begin") == (session.block is not None):
            told.append((step, "cannot"))
            continue
        session.under_way = asyncio.get_running_loop().create_task(session.do(step))
        await rest(sessions)
        told.append((step, [_come_to(one) for one in sessions]))
        if step.do in ("commit", "roll back"):
            session.block = None
        if all(one.under_way is not None for one in sessions):
            told.append("both wait")
            break
    for session in sessions:
        await _end(session)
    return told


def _come_to(session: Session) -> Any:
    task = session.under_way
    if task is None:
        return "nothing"
    if not task.done():
        return "waits"
    session.under_way = None
    error = task.exception()
    return task.result() if error is None else type(error).__name__


async def _end(session: Session) -> None:
    if session.under_way is not None:
        session.connection.terminate()
        await asyncio.wait((session.under_way,))
        session.under_way.exception()
    else:
        await session.connection.close()


async def _prepare(connection: Any) -> None:
    for step in PREPARED:
        await connection.execute(TEXTS[step.do], *step.arguments)


def simulated(seed: int) -> tuple[list[Any], Any]:
    async def main(_: object) -> tuple[list[Any], Any]:
        server = SimulatedPostgres(random.Random(seed), by_text(), TABLES)
        server.travel_s = (0.0001, 0.001)
        connections = [await server.connect() for _ in range(2)]
        await _prepare(connections[0])

        async def rest(sessions: Sequence[Session]) -> None:
            await asyncio.sleep(0.05)

        told = await play([Session(connection) for connection in connections], script(seed), rest)
        return told, contents(server.tables)

    return run(main)  # type: ignore[no-any-return]


async def real(dsn: str, seed: int) -> tuple[list[Any], Any]:
    watcher = await asyncpg.connect(dsn)
    connections = [await asyncpg.connect(dsn, server_settings={"deadlock_timeout": "60s"}) for _ in range(2)]
    await _empty(watcher)
    for connection in connections:
        await connection.execute(TEXTS["folded_make"])
    await _prepare(connections[0])

    async def rest(sessions: Sequence[Session]) -> None:
        """Until each is done or waits for a lock that it has not got. Twice: what the second does may let the first go on."""
        for session in [*sessions, *sessions]:
            while session.under_way is not None and not session.under_way.done():
                waits = "SELECT count(*) FROM pg_locks WHERE pid = $1 AND NOT granted"
                if await watcher.fetchval(waits, session.connection.get_server_pid()):
                    break
        await asyncio.sleep(0)

    told = await play([Session(connection) for connection in connections], script(seed), rest)
    found = await stored(watcher)
    await watcher.close()
    return told, found


async def _empty(connection: Any) -> None:
    await connection.execute(f"TRUNCATE {', '.join(TABLES)} RESTART IDENTITY CASCADE")


# ---- tables


_COLUMNS = {
    "tenants": "name, tenant, book",
    "price_books": "tenant, hash, book, definition::text",
    "meters": "name, meter, aggregation, scale, window_s, dimensions",
    "meter_hashes": "meter, hash",
    "chains": 'writer, "partition", last_n, held',
    "records": "writer, \"partition\", n, replace(hash::text, '-', ''), log, stream, next_position, header_names, header_values, value",
    "parked": "id, writer, \"partition\", n, replace(hash::text, '-', ''), reason, sound, missing, log, stream, next_position, "
    "header_names, header_values, value",
    "series": "replace(series::text, '-', ''), tenant, meter, subject, dimensions::text",
    "usage": "replace(series::text, '-', ''), window_start_s, value::text, events",
    "periods": "tenant, period, start_s, end_s, book",
    "charge_lines": "replace(line::text, '-', ''), tenant, period, subject, meter, price, dimensions::text, quantity::text, amount::text",
    "tallies": "tenant, writer, verdict, events",
    "positions": "log, stream, next_position",
    "progress": "log, as_of_us",
}


async def stored(connection: Any) -> dict[str, list[Any]]:
    return _named(
        {table: [tuple(row) for row in await connection.fetch(f"SELECT {columns} FROM {table}")] for table, columns in _COLUMNS.items()}
    )


def contents(tables: Any) -> dict[str, list[Any]]:
    found = {
        table: [(*key, *row) if isinstance(row, tuple) else (*key, row) for key, row in rows.items()] for table, rows in tables.items()
    }
    found["parked"] = [tuple(row) for row in tables["parked"].values()]
    found["meters"] = [(*row[:-1], list(row[-1])) for row in found["meters"]]
    found["usage"] = [(series, start, str(value), events) for series, start, value, events in found["usage"]]
    found["charge_lines"] = [(*row[:7], str(row[7]), None if row[8] is None else format(row[8], "f")) for row in found["charge_lines"]]
    return _named(found)


def _named(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Numbers of tenants, meters and books by what they stand for; those of parked records left out; in order."""
    tenants = {row[1]: row[0] for row in found["tenants"]}
    meters = {row[1]: row[0] for row in found["meters"]}
    books = {row[2]: (tenants[row[0]], row[1]) for row in found["price_books"]}
    told = dict(found)
    told["tenants"] = [(name, books.get(number)) for name, _, number in found["tenants"]]
    told["price_books"] = [(tenants[row[0]], row[1], row[3]) for row in found["price_books"]]
    told["meters"] = [(row[0], *row[2:]) for row in found["meters"]]
    told["meter_hashes"] = [(meters[row[0]], row[1]) for row in found["meter_hashes"]]
    told["parked"] = [row[1:] for row in found["parked"]]
    told["series"] = [(row[0], tenants[row[1]], meters[row[2]], *row[3:]) for row in found["series"]]
    told["periods"] = [(tenants[row[0]], *row[1:4], books.get(row[4])) for row in found["periods"]]
    told["charge_lines"] = [(row[0], tenants[row[1]], *row[2:]) for row in found["charge_lines"]]
    told["tallies"] = [(tenants[row[0]], *row[1:]) for row in found["tallies"]]
    return {table: sorted(map(repr, rows)) for table, rows in told.items()}


# ---- the tests


def test_two_sessions_meet_the_same_everywhere(database: str) -> None:
    """Every statement, waiting for one another included."""

    async def compare() -> Counter[str]:
        await migrate(database)
        reached: Counter[str] = Counter()
        for seed in range(SCRIPTS):
            (expected, rows), (told, tables) = await real(database, seed), await asyncio.to_thread(simulated, seed)
            for one, other in zip(expected, told, strict=False):
                assert other == one, f"script {seed}"
            assert (len(told), tables) == (len(expected), rows), f"script {seed}"
            reached.update(step[0].do for step in told if step != "both wait" and step[1] != "cannot")
            reached.update(outcome for step in told if isinstance(step[1], list) for outcome in step[1] if isinstance(outcome, str))
        return reached

    reached = asyncio.run(compare())
    assert set(reached) >= {*_ARGUMENTS, "waits", "UniqueViolationError", "InFailedSQLTransactionError"}
    assert set(_ARGUMENTS) == {*STATEMENTS, "COPY records"}


def test_a_deadlock_ends_one_of_the_two(database: str) -> None:
    """The one that closes the circle; the other goes on."""
    first, second = ([WRITERS[0]], [0]), ([WRITERS[1]], [1])

    async def meet(connect: Connect) -> tuple[str, int]:
        one, other = [Session(await connect()) for _ in range(2)]
        await one.connection.execute(TEXTS["chains_add"], [*first[0], *second[0]], [*first[1], *second[1]])
        await one.do(Step(0, "begin"))
        await other.do(Step(1, "begin"))
        await one.connection.fetch(TEXTS["chains_lock"], *first)
        await other.connection.fetch(TEXTS["chains_lock"], *second)
        results = await asyncio.gather(
            one.connection.fetch(TEXTS["chains_lock"], *second),
            other.connection.fetch(TEXTS["chains_lock"], *first),
            return_exceptions=True,
        )
        failed = [type(result).__name__ for result in results if isinstance(result, BaseException)]
        loser, winner = (one, other) if isinstance(results[0], BaseException) else (other, one)
        # The loser's locks go with its transaction, which the server has ended, though it is told so only now.
        await loser.do(Step(0, "roll back"))
        await winner.do(Step(0, "commit"))
        await one.connection.close()
        await other.connection.close()
        return failed[0], len(failed)

    async def real_meeting() -> tuple[str, int]:
        await migrate(database)
        return await meet(lambda: asyncpg.connect(database, server_settings={"deadlock_timeout": "50ms"}))

    async def simulated_meeting(_: object) -> tuple[str, int]:
        return await meet(SimulatedPostgres(random.Random(1), by_text(), TABLES).connect)

    assert asyncio.run(real_meeting()) == run(simulated_meeting) == ("DeadlockDetectedError", 1)


def test_the_same_records_end_in_the_same_tables(database: str) -> None:
    """Through the real rater: batches in an order of chance, records twice, damaged and missing ones, two raters at once, price books."""

    async def prepare() -> None:
        await migrate(database)

    asyncio.run(prepare())
    for seed in range(6):
        assert run(lambda _, seed=seed: _rated_simulated(seed)) == asyncio.run(_rated_for_real(database, seed)), f"seed {seed}"


async def _rated_simulated(seed: int) -> Any:
    server = SimulatedPostgres(random.Random(seed), by_text(), TABLES)
    await _rate(seed, [Ledger("simulated", connect=server.connect) for _ in range(2)])
    return contents(server.tables)


async def _rated_for_real(dsn: str, seed: int) -> Any:
    watcher = await asyncpg.connect(dsn)
    await _empty(watcher)
    await _rate(seed, [Ledger(dsn) for _ in range(2)])
    found = await stored(watcher)
    await watcher.close()
    return found


async def _rate(seed: int, ledgers: Sequence[Ledger]) -> None:
    rng = random.Random(seed)
    log = _log(rng)
    first, second = ledgers
    await first.put_book(book(), now_s=0, late_s=0)
    for start in range(0, len(log), 7):
        await first.apply("log", log[start : start + 7])
        again = log[max(0, start - 3) : start + 4]
        await asyncio.gather(first.apply("log", again), second.apply("log", log[start : start + 7]))
    for chain in await second.due_chains():
        while (await second.apply_parked("log", chain)).unparked:
            pass
    await second.put_book(book(currency="EUR"), now_s=0, late_s=0)
    await first.note_progress("log", 5, {"s0": len(log)})
    differences = await first.check_charges("demo")
    assert differences == []
    for ledger in ledgers:
        await ledger.close()


def _log(rng: random.Random) -> list[Received]:
    writers = [Writer(byte, partitions=2) for byte in (1, 2)]
    records: list[Received] = []
    for index in range(12):
        records += writers[index % 2].flush(at_random(rng.randrange(10**6), 8), {"demo": {"received": 2, "accepted": 2}})
    for _ in range(4):
        at = rng.randrange(len(records))
        records[at : at + 2] = reversed(records[at : at + 2])
    lost = rng.randrange(len(records))
    damaged = records[rng.randrange(len(records))]
    records = [*records[:lost], *records[lost + 1 :], damaged._replace(value=damaged.value + b" "), damaged._replace(headers={"v": b"1"})]
    return [Received("s0", at + 1, record.headers, record.value) for at, record in enumerate(records)]
