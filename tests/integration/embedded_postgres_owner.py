"""A process that owns an embedded PostgreSQL, for tests that kill one or the other.

    python embedded_postgres_owner.py FOLDER [UID]

With a UID it becomes that user first: not before Python runs, whose own files may be closed to that user.
It starts the server, prints `started PID DSN`, and then obeys lines of standard input, answering each with one line:
`again` starts the server again, after somebody killed it; `stop` and `hurry` stop it and end the process.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401 - now, while its file can be read
import os
import sys

from parshall import embedded_postgres
from parshall.embedded_postgres import EmbeddedPostgres, EmbeddedPostgresError
from parshall.logs import configure_logs
from parshall.processes import ended

# As in earnest, only sooner.
embedded_postgres._TO_THE_LAST_ONE = [(number, patience_s / 5) for number, patience_s in embedded_postgres._TO_THE_LAST_ONE]


async def main(folder: str) -> None:
    try:
        postgres = EmbeddedPostgres(f"{folder}/postgres", f"{folder}/postgres/run")
        await postgres.start()
    except EmbeddedPostgresError as error:
        print("refused", error, flush=True)
        return
    print("started", postgres.process.pid, postgres.dsn, flush=True)
    while command := (await asyncio.to_thread(sys.stdin.readline)).strip():
        if command == "again":
            await ended(postgres.process)
            await postgres.start()
            print("started", postgres.process.pid, postgres.dsn, flush=True)
        else:
            await postgres.stop(hurry=command == "hurry")
            print("stopped", flush=True)
            return


if __name__ == "__main__":
    configure_logs("owner")  # not where it answers
    if len(sys.argv) > 2:
        os.setgroups([])
        os.setgid(int(sys.argv[2]))
        os.setuid(int(sys.argv[2]))
    asyncio.run(main(sys.argv[1]))
