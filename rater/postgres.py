"""The rater's one connection to PostgreSQL: every method is one transaction, or nothing happened.

Belongs here: connecting, beginning and ending transactions, what kind of failure an error is. Must not know: sources, when to try again.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import asyncpg
from asyncpg.exceptions import DataError, InterfaceError, InternalClientError, PostgresError, ProgramLimitExceededError

from buffer.counters import MeterDefinition
from rater.chain import BEHIND_A_FORK, CHOSEN, ChainKey
from rater.configured import Configured
from rater.prices.book import PriceBook
from rater.recharge import Recharge, recharge
from rater.rerate import Difference, Put, check_book, check_charges, put_book
from rater.source import Received
from rater.transaction import CHAINS, USAGE, Applied, Connection, Known, Transaction

COMMAND_TIMEOUT_S = 60

# Internal…: what asyncpg raises when a connection ends in the middle of a COPY.
FAILURES = (PostgresError, InterfaceError, InternalClientError, OSError, TimeoutError)


class DatabaseFailed(Exception):
    """Not committed, or it is not known whether: go back to the stored positions and try again. The message says what happened."""


class Unstorable(DatabaseFailed):
    """PostgreSQL refuses the data itself: trying the same again ends the same."""


_MOST_CHOSEN = 10_000


class Released(NamedTuple):
    done: bool
    choices: list[int]  # not done because both sides of the fork are parked: name one of these
    unfit: bool = False  # nothing was done: the record that was named is not among the choices
    again: tuple[int, int] | None = None  # the first and the last record that have to be sent again; None: none was left out


async def open_pool(dsn: str, *, most: int = 4) -> asyncpg.Pool:
    """Connections for queries (rater/api.py). Plans are made for the values asked for: tenants differ by orders of magnitude."""
    settings = {"plan_cache_mode": "force_custom_plan", "application_name": "parshall api"}
    return await asyncpg.create_pool(dsn, min_size=0, max_size=most, command_timeout=COMMAND_TIMEOUT_S, server_settings=settings)


class Ledger:
    """Used by one task at a time, or by several that wait for each other. Connects when it is needed."""

    def __init__(
        self, dsn: str, *, command_timeout_s: float = COMMAND_TIMEOUT_S, connect: Callable[..., Awaitable[Connection]] = asyncpg.connect
    ) -> None:
        """`connect`: makes a connection; it takes what `asyncpg.connect` takes."""
        self._dsn = dsn
        self._command_timeout_s = command_timeout_s
        self._connect = connect
        self._connection: Connection | None = None
        self._known = Known()
        self._configured = Configured()
        self._turn = asyncio.Lock()

    @property
    def backend_pid(self) -> int | None:
        """The server's process for this connection, for tests that end it."""
        return None if self._connection is None or self._connection.is_closed() else self._connection.get_server_pid()

    async def positions(self, log: str, streams: Iterable[str]) -> dict[str, int]:
        async with self._transaction() as connection:
            return dict(await connection.fetch(CHAINS["positions_of"], log, list(streams)))

    async def apply(self, log: str, batch: Sequence[Received], refuse: str | None = None) -> Applied:
        """Rate a polled batch. With `refuse` whatever would be applied is parked for that reason.

        Raises ConfigurationRefused when it brings a meter that the configuration contradicts.
        """
        async with self._transaction() as connection:
            self._known.trim()
            transaction = Transaction(connection, log, self._known, self._configured)
            applied = await transaction.run(batch, refuse)
        transaction.learn()
        return applied

    async def due_chains(self) -> list[ChainKey]:
        """Where a parked record could be applied now."""
        async with self._transaction() as connection:
            return [(writer, partition) for writer, partition in await connection.fetch(CHAINS["chains_due"])]

    async def apply_parked(self, log: str, chain: ChainKey) -> Applied:
        """Some of what is parked in a chain and due; call again until nothing is."""
        async with self._transaction() as connection:
            transaction = Transaction(connection, log, self._known, self._configured)
            applied = await transaction.run_parked(chain)
        transaction.learn()
        return applied

    async def release(self, writer: bytes, partition: int, right: int | None = None) -> Released:
        """An operator's decision: go on after a fork. What was parked as the other side of it stays parked, as explained.

        `right`: the id of a parked record that is to be applied, where both sides of a fork are parked: once for each such number. What
        is parked behind the fork and was not chosen may be of the wrong journal: it is left out until it comes again.
        """
        async with self._transaction() as connection:
            held = [row[2] for row in await connection.fetch(CHAINS["chains_lock"], [writer], [partition]) if row[3] is not None]
            rivals = {row["id"]: row["n"] for row in await connection.fetch(CHAINS["parked_rivals"], writer, partition)}
            if right is not None:
                if right not in rivals:
                    return Released(False, list(rivals), unfit=True)
                wrong = [number for number, n in rivals.items() if n == rivals[right] and number != right]
                await connection.execute(CHAINS["parked_reject"], wrong)
                await connection.execute(CHAINS["parked_choose"], [right], CHOSEN)
                rivals = {number: n for number, n in rivals.items() if n != rivals[right]}
            if rivals or not held:
                return Released(False, list(rivals))
            again = await _left_out(connection, writer, partition, held[0])
            await connection.execute(CHAINS["parked_accept"], writer, partition)
            await connection.execute(CHAINS["chain_release"], writer, partition)
        return Released(True, [], again=again)

    async def take_up(self, writer: bytes, partition: int, record: int | None) -> int:
        """An operator's decision: what was left out behind a fork, or one such record, is of the right journal. How many there are."""
        async with self._transaction() as connection:
            done: str = await connection.execute(CHAINS["parked_take_up"], writer, partition, BEHIND_A_FORK, record, CHOSEN)
        return int(done.removeprefix("UPDATE "))

    async def give_up(self, writer: bytes, partition: int) -> int:
        """An operator's decision: what is still left out behind a fork is of the wrong journal, and stays parked, as explained."""
        async with self._transaction() as connection:
            done: str = await connection.execute(CHAINS["parked_give_up"], writer, partition, BEHIND_A_FORK)
        return int(done.removeprefix("UPDATE "))

    async def leave_out_stray(self, record: int) -> bool:
        """An operator's decision: a record without a place stays parked, as explained. Whether there is one of this id."""
        async with self._transaction() as connection:
            done: str = await connection.execute(CHAINS["stray_accept"], record)
        return done == "UPDATE 1"

    async def note_progress(self, log: str, as_of_us: int, ends: Mapping[str, int]) -> int | None:
        """Record that all that stood in the log at `as_of_us`, up to these ends, is rated. None: not yet, or something is parked."""
        async with self._transaction() as connection:
            noted: int | None = await connection.fetchval(CHAINS["progress_store"], log, as_of_us, list(ends), list(ends.values()))
            return noted

    async def put_book(self, book: PriceBook, *, now_s: int, late_s: int) -> Put:
        """Make a price book the one in force; months that it changes are charged again. Raises ConfigurationRefused."""
        async with self._transaction() as connection:
            return await put_book(connection, book, now_s=now_s, late_s=late_s)

    async def check_book(self, book: PriceBook) -> None:
        """Raises ConfigurationRefused where `put_book` would."""
        async with self._transaction() as connection:
            await check_book(connection, book)

    async def check(self, configured: Configured) -> None:
        """Raises ConfigurationRefused when it contradicts the meters that are counted."""
        async with self._transaction() as connection:
            rows = await connection.fetch(USAGE["meters_known"])
        configured.check([_definition(row) for row in rows])

    async def expect(self, configured: Configured) -> None:
        """From now on what is rated is held against it. Raises what `check` does."""
        await self.check(configured)
        self._configured = configured

    async def recharge(self, tenant: str, period: str, *, apply: bool) -> Recharge:
        """Charge a month by the book in force, final or not; or say what that would change. Raises NotCharged."""
        async with self._transaction() as connection:
            return await recharge(connection, tenant, period, apply=apply)

    async def check_charges(self, tenant: str) -> list[Difference]:
        """Every charge line of a tenant against what usage makes it; empty: all agree."""
        async with self._transaction() as connection:
            return await check_charges(connection, tenant)

    async def close(self) -> None:
        async with self._turn:
            connection, self._connection = self._connection, None
            if connection is not None:
                try:
                    await connection.close(timeout=5)
                except FAILURES:
                    connection.terminate()

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[Connection]:
        async with self._turn:
            try:
                connection = await self._connected()
                async with connection.transaction():
                    yield connection
            except (DataError, asyncpg.exceptions._base.DataError, ProgramLimitExceededError) as error:
                self._forget()
                raise Unstorable(told(error)) from error
            except FAILURES as error:
                self._forget()
                raise DatabaseFailed(told(error)) from error
            except BaseException:  # cancelled, or a broken invariant: what the connection was doing is not known
                self._forget()
                raise

    async def _connected(self) -> Connection:
        if self._connection is not None and self._connection.is_closed():
            self._forget()
            # Behind a new connection may be an older state (a backup, a replica that lagged): what was read since must be read again.
            raise DatabaseFailed("the connection to PostgreSQL has ended")
        if self._connection is None:
            settings = {
                "application_name": "parshall rater",
                "default_transaction_isolation": "read committed",
                "idle_in_transaction_session_timeout": "60s",  # a rater that stands still does not keep the others waiting
            }
            connection = await self._connect(self._dsn, command_timeout=self._command_timeout_s, server_settings=settings)
            self._connection = connection
            await connection.execute(USAGE["folded_make"])
        return self._connection

    def _forget(self) -> None:
        """After an error: the connection, and all that was believed to be stored (the server may have been restored from a backup)."""
        connection, self._connection = self._connection, None
        self._known = Known()
        if connection is not None and not connection.is_closed():
            connection.terminate()


async def _left_out(connection: Connection, writer: bytes, partition: int, last_n: int) -> tuple[int, int] | None:
    """Leave out what is parked behind a fork and was not chosen. What has to be sent again: also what never came before it."""
    left = [row[0] for row in await connection.fetch(CHAINS["parked_leave_out"], writer, partition, last_n, BEHIND_A_FORK, CHOSEN)]
    if not left:
        return None
    chosen = {row["n"] for row in await connection.fetch(CHAINS["parked_next"], writer, partition, last_n, _MOST_CHOSEN)}
    return next(n for n in itertools.count(last_n + 1) if n not in chosen), max(left)


def _definition(row: Sequence[Any]) -> MeterDefinition:
    name, aggregation, scale, window_s, dimensions = row
    return MeterDefinition(name, "", aggregation, scale, window_s, tuple(dimensions))


def told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
