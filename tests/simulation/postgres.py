"""PostgreSQL of the simulation: transactions, row locks and connections, in simulated time, with everything that can happen to them.

Belongs here: what a transaction sees, who waits for whom, what of a transaction survives when its connection or the server ends. Must not
know: what the statements mean (postgres_statements.py), the rater, when faults happen.

Read committed, as the rater asks for: each statement reads what is committed and what its own transaction wrote. Rows are locked by key,
a key that does not exist yet too (which is how an insert waits for another one of the same key), until the transaction ends.
tests/conformance/test_simulated_postgres.py compares all of it with a real server.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple, Self

from asyncpg.exceptions import (
    ConnectionDoesNotExistError,
    DeadlockDetectedError,
    InFailedSQLTransactionError,
    InterfaceError,
    PostgresError,
)

DEADLOCK_S = 1.0  # how long a statement waits for a lock before it looks whether it waits in a circle
IDLE_IN_TRANSACTION_S = 60.0  # what the rater asks for

# Lock modes; two conflict when their sum is at least 2.
KEY_SHARE, NO_KEY_UPDATE, UPDATE = 0, 1, 2

Key = tuple[Any, ...]
Cell = tuple[str, Key]  # (table, key)
Tables = dict[str, dict[Key, Any]]
Statement = Callable[..., Awaitable[Any]]


class _Waiting(NamedTuple):
    work: Work
    mode: int
    granted: asyncio.Future[None]


class Work:
    """One transaction, as the server has it."""

    def __init__(self, server: SimulatedPostgres) -> None:
        self.server = server
        self.written: dict[str, dict[Key, Any]] = {}  # table -> key -> row; None: deleted
        self.deleted: set[Cell] = set()  # also where it wrote another row of this key since
        self.locks: dict[Cell, int] = {}
        self.folded: list[tuple[bool, str, int, int, int]] = []  # the temporary table of that name
        self.failed = False
        self.over = False
        self.deadline_s = float("inf")  # of the statement under way
        self.waits: tuple[Cell, _Waiting] | None = None

    def row(self, table: str, key: Key) -> Any:
        mine = self.written.get(table)
        if mine is not None and key in mine:
            return mine[key]
        return self.server.tables[table].get(key)

    def rows(self, table: str) -> list[tuple[Key, Any]]:
        """All that this transaction sees now."""
        committed = self.server.tables[table]
        mine = self.written.get(table)
        if not mine:
            return list(committed.items())
        return [(key, row) for key, row in {**committed, **mine}.items() if row is not None]

    def put(self, table: str, key: Key, row: Any) -> None:
        """`row` None: delete it. The key must be locked."""
        assert self.locks.get((table, key), KEY_SHARE) != KEY_SHARE, f"{table} {key} is written without its lock"
        self.written.setdefault(table, {})[key] = row
        if row is None:
            self.deleted.add((table, key))

    async def lock(self, table: str, key: Key, mode: int) -> bool:
        """Until the end of the transaction. Whether it was not held before."""
        if self.over:  # its connection ended while it waited for another lock
            raise _gone()
        cell = (table, key)
        held = self.locks.get(cell)
        if held is not None and held >= mode:
            return False
        if not self.server.grantable(self, cell, mode):
            await self._wait(cell, mode)
        else:
            self.server.grant(self, cell, mode)
        return held is None

    async def _wait(self, cell: Cell, mode: int) -> None:
        loop = asyncio.get_running_loop()
        waiting = _Waiting(self, mode, loop.create_future())
        self.server.queues[cell].append(waiting)
        self.waits = (cell, waiting)
        try:
            await self._granted_within(min(DEADLOCK_S, self.deadline_s - loop.time()))
            if not waiting.granted.done() and self.server.waits_in_a_circle(self):
                self.server.deadlocks += 1
                raise DeadlockDetectedError("deadlock detected")
            await self._granted_within(self.deadline_s - loop.time())
            if not waiting.granted.done():
                raise TimeoutError
            waiting.granted.result()
            if self.over:
                raise _gone()
        finally:
            self.waits = None
            if waiting in self.server.queues[cell]:
                self.server.queues[cell].remove(waiting)

    async def _granted_within(self, seconds: float) -> None:
        assert self.waits is not None
        granted = self.waits[1].granted
        if not granted.done():
            await asyncio.wait((granted,), timeout=None if seconds == float("inf") else max(0.0, seconds))

    def unlock(self, table: str, key: Key) -> None:
        """A lock that was only needed to wait for another transaction."""
        del self.locks[table, key]
        self.server.release(self, (table, key))


def _gone() -> ConnectionDoesNotExistError:
    return ConnectionDoesNotExistError("connection was closed in the middle of operation")


class SimulatedPostgres:
    def __init__(self, rng: random.Random, statements: dict[str, Statement], tables: Iterable[str]) -> None:
        """`statements`: the text of each -> what it does."""
        self.rng = rng
        self.statements = statements
        self.tables: Tables = {table: {} for table in tables}
        self.sequences: dict[str, int] = defaultdict(int)
        self.deletions: Counter[Cell] = Counter()  # that are committed: whoever waited for a row that is gone gets no new one of its key
        self.queues: dict[Cell, list[_Waiting]] = defaultdict(list)
        self.connections: list[SimulatedConnection] = []
        self.loose: list[Work] = []  # transactions whose client is gone, and that the server has not ended yet
        self.down_until_s = 0.0
        self.travel_s: tuple[float, ...] = (0.0, 0.0002, 0.001)  # one way; one of these
        self.slow = 1.0  # how many times that
        self.next_commit_lost = self.next_commit_reply_lost = False
        self.on_commit: Callable[[Work], None] = _nobody
        self.on_commit_lost: Callable[[str], None] = _nobody
        self.commits = 0
        self.deadlocks = 0
        self._holders: dict[Cell, dict[Work, int]] = {}

    # ---- locks

    def grantable(self, work: Work, cell: Cell, mode: int) -> bool:
        return not self.blockers(work, cell, mode)

    def blockers(self, work: Work, cell: Cell, mode: int) -> list[Work]:
        return [other for other, held in self._holders.get(cell, {}).items() if other is not work and held + mode >= UPDATE]

    def grant(self, work: Work, cell: Cell, mode: int) -> None:
        assert not work.over, "a transaction that has ended takes no lock"
        self._holders.setdefault(cell, {})[work] = mode
        work.locks[cell] = mode

    def waits_in_a_circle(self, work: Work) -> bool:
        seen: set[Work] = set()
        ahead = [work]
        while ahead:
            waits = ahead.pop().waits
            if waits is None:
                continue
            cell, waiting = waits
            for other in self.blockers(waiting.work, cell, waiting.mode):
                if other is work:
                    return True
                if other not in seen:
                    seen.add(other)
                    ahead.append(other)
        return False

    def release(self, work: Work, cell: Cell) -> None:
        holders = self._holders[cell]
        del holders[work]
        if not holders:
            del self._holders[cell]
        queue = self.queues.get(cell)
        if queue is None:
            return
        for waiting in list(queue):
            if not waiting.granted.done() and self.grantable(waiting.work, cell, waiting.mode):
                self.grant(waiting.work, cell, waiting.mode)
                queue.remove(waiting)
                waiting.granted.set_result(None)
        if not queue:
            del self.queues[cell]

    def writes_elsewhere(self, work: Work, table: str, key: Key) -> bool:
        """Whether another transaction has changed or deleted this row and not ended yet."""
        return any(key in other.written.get(table, ()) for other in self._holders.get((table, key), {}) if other is not work)

    # ---- the end of transactions

    def commit(self, work: Work) -> None:
        if work.over:
            return
        self.commits += 1
        for table, rows in work.written.items():
            stored = self.tables[table]
            for key, row in rows.items():
                if row is None:
                    stored.pop(key, None)
                else:
                    stored[key] = row
        self.deletions.update(work.deleted)
        self.on_commit(work)
        self._end(work)

    def roll_back(self, work: Work, why: BaseException | None = None) -> None:
        if not work.over:
            if work.waits is not None and not work.waits[1].granted.done():
                work.waits[1].granted.set_exception(why or _gone())
            self._end(work)

    def _end(self, work: Work) -> None:
        work.over = True
        for cell in list(work.locks):
            self.release(work, cell)
        work.locks.clear()

    # ---- connections, and what happens to them

    async def connect(self, dsn: str = "", *, command_timeout: float = 60, **_: object) -> SimulatedConnection:
        """As `asyncpg.connect`."""
        await asyncio.sleep(self.rng.choice(self.travel_s) * self.slow)
        if asyncio.get_running_loop().time() < self.down_until_s:
            raise ConnectionRefusedError("the simulated PostgreSQL is down")
        connection = SimulatedConnection(self, command_timeout)
        self.connections.append(connection)
        return connection

    def restart(self, down_s: float) -> None:
        """A crash: what is committed stays."""
        for connection in list(self.connections):
            connection.break_off(at_once=True)
        for work in self.loose:
            self.roll_back(work)
        self.loose.clear()
        self.down_until_s = asyncio.get_running_loop().time() + down_s

    def backup(self) -> tuple[Tables, dict[str, int]]:
        return {table: dict(rows) for table, rows in self.tables.items()}, dict(self.sequences)

    def restore(self, backup: tuple[Tables, dict[str, int]], down_s: float) -> None:
        """What was committed since the backup is gone (a failover to a replica that lags is the same)."""
        self.restart(down_s)
        tables, sequences = backup
        self.tables = {table: dict(rows) for table, rows in tables.items()}
        self.sequences = defaultdict(int, sequences)

    def heal(self) -> None:
        self.down_until_s = 0.0
        self.slow = 1.0
        self.next_commit_lost = self.next_commit_reply_lost = False
        for connection in self.connections:
            connection.stalled_until_s = 0.0

    def next_number(self, sequence: str) -> int:
        self.sequences[sequence] += 1
        return self.sequences[sequence]


def _nobody(_: object) -> None:
    """Not asked for."""


class SimulatedConnection:
    """What the rater uses of an `asyncpg.Connection`."""

    def __init__(self, server: SimulatedPostgres, command_timeout_s: float) -> None:
        self._server = server
        self._command_timeout_s = command_timeout_s
        self._work: Work | None = None
        self._committing = False
        self._closed = False
        self.stalled_until_s = 0.0  # the client stands still until then
        self.step: Callable[[str], None] = _nobody  # told of "begin", "commit", "committed", "lost", "end"

    # ---- what asyncpg offers

    def is_closed(self) -> bool:
        return self._closed

    def get_server_pid(self) -> int:
        return id(self)

    def terminate(self) -> None:
        self.break_off()

    async def close(self, timeout: float | None = None) -> None:
        self.break_off()

    def transaction(self, **_: object) -> contextlib.AbstractAsyncContextManager[None]:
        return self._transaction()

    async def fetch(self, text: str, *arguments: object, timeout: float | None = None) -> Sequence[Any]:
        return await self._ask(self._server.statements[text], arguments, timeout) or ()

    async def fetchrow(self, text: str, *arguments: object, timeout: float | None = None) -> Any:
        rows = await self.fetch(text, *arguments, timeout=timeout)
        return rows[0] if rows else None

    async def fetchval(self, text: str, *arguments: object, timeout: float | None = None) -> Any:
        row = await self.fetchrow(text, *arguments, timeout=timeout)
        return None if row is None else row[0]

    async def execute(self, text: str, *arguments: object, timeout: float | None = None) -> str:
        done = await self._ask(self._server.statements[text], arguments, timeout)
        return done if isinstance(done, str) else ""

    async def copy_records_to_table(self, table: str, *, records: Sequence[Sequence[Any]], columns: Sequence[str]) -> None:
        await self._ask(self._server.statements[f"COPY {table}"], (columns, records), None)

    async def copy_to_table(self, table: str, *, source: BinaryIO, **options: str) -> None:
        await self._ask(self._server.statements[f"COPY {table} {options['format']}"], (source.read(),), None)

    # ---- one round trip

    async def _ask(self, statement: Statement, arguments: Sequence[object], timeout_s: float | None) -> Any:
        within_s = timeout_s or self._command_timeout_s
        await self._travel(within_s)
        work, alone = self._work, self._work is None
        if work is None:
            work = self._work = Work(self._server)
        if work.failed:
            raise InFailedSQLTransactionError("current transaction is aborted, commands ignored until end of transaction block")
        work.deadline_s = asyncio.get_running_loop().time() + within_s
        try:
            answer = await statement(work, *arguments)
        except (PostgresError, TimeoutError) as error:
            work.failed = True
            self._server.roll_back(work, error)  # at once: its locks are not kept until the client says so too
            if alone:
                self._work = None
            raise
        if alone:
            self._server.commit(work)
            self._work = None
        await self._stand_still()
        if self._closed:
            raise _gone()
        return answer

    async def _travel(self, within_s: float) -> None:
        if self._closed:
            raise InterfaceError("connection is closed")
        server = self._server
        takes_s = server.rng.choice(server.travel_s) * server.slow
        await asyncio.sleep(min(takes_s, within_s))
        if takes_s > within_s:
            raise TimeoutError
        if self._closed:
            raise _gone()

    async def _stand_still(self) -> None:
        """A stopped process: the server waits for its next word, not for ever."""
        loop = asyncio.get_running_loop()
        while (left_s := self.stalled_until_s - loop.time()) > 0:
            if self._work is not None and left_s > IDLE_IN_TRANSACTION_S:
                await asyncio.sleep(IDLE_IN_TRANSACTION_S)
                if loop.time() < self.stalled_until_s:
                    self.break_off(at_once=True)
            await asyncio.sleep(max(0.0, self.stalled_until_s - loop.time()))

    @contextlib.asynccontextmanager
    async def _transaction(self) -> Any:
        await self._travel(self._command_timeout_s)
        assert self._work is None, "a transaction within a transaction"
        self._work = Work(self._server)
        self.step("begin")
        try:
            yield
        except asyncio.CancelledError:  # the process was killed
            self.break_off()
            raise
        except BaseException:
            if self._closed:
                raise InterfaceError("cannot call Transaction.rollback(): the underlying connection is closed") from None
            self._end(self._server.roll_back)
            raise
        await self._commit()

    async def _commit(self) -> None:
        server, work = self._server, self._work
        assert work is not None or self._closed
        if self._closed or work is None:
            raise InterfaceError("cannot call Transaction.commit(): the underlying connection is closed")
        self._committing = True
        self.step("commit")
        if server.next_commit_lost:
            server.next_commit_lost = False
            server.on_commit_lost("commit_lost")
            self._committing = False
            self.break_off()
        await self._travel_if_open()
        self._committing = False
        self._end(server.commit)
        self.step("committed")
        if server.next_commit_reply_lost:
            server.next_commit_reply_lost = False
            self.step("lost")
            server.on_commit_lost("commit_reply_lost")
            self.break_off()
        await self._stand_still()
        await self._travel_if_open()
        self.step("end")

    async def _travel_if_open(self) -> None:
        try:
            await self._travel(self._command_timeout_s)
        except InterfaceError as error:
            raise _gone() from error

    def _end(self, how: Callable[[Work], None]) -> None:
        work, self._work = self._work, None
        if work is not None:
            how(work)

    def break_off(self, *, at_once: bool = False) -> None:
        """The connection is gone for the client. A commit that was under way may take effect, sooner or later; all else is undone.

        `at_once`: the server ends it, so nothing of it takes effect later.
        """
        if self._closed:
            return
        self._closed = True
        server = self._server
        server.connections.remove(self)
        work, self._work = self._work, None
        if work is None:
            return
        arrived = self._committing and not work.failed and server.rng.random() < 0.5
        if work.waits is not None and not work.waits[1].granted.done():
            work.waits[1].granted.set_exception(_gone())
        end = server.commit if arrived else server.roll_back
        if at_once:
            end(work)
        else:
            asyncio.get_running_loop().call_later(server.rng.choice((0.0, 0.0, 0.01, 0.3, 4.0)), end, work)
            server.loose = [*(other for other in server.loose if not other.over), work]


class Row(tuple[Any, ...]):
    """As an asyncpg.Record: by position and by name."""

    _at: dict[str, int]

    def __getitem__(self, which: Any) -> Any:
        return tuple.__getitem__(self, self._at[which] if isinstance(which, str) else which)

    def keys(self) -> Iterator[str]:
        return iter(self._at)

    @classmethod
    def named(cls, *names: str) -> type[Self]:
        return type("Row", (cls,), {"_at": {name: position for position, name in enumerate(names)}, "__slots__": ()})
