"""`parshall rate`: the rater alone, for production: Kafka in, PostgreSQL out, and the API that reads usage and charges."""

from __future__ import annotations

import asyncio
import sys

import click

from parshall.errors import EXIT_CODES
from parshall.roles import demand, options, settings_given
from parshall.streams import announce

HELP = f"""Run the rater: counters from Kafka become usage and charges in PostgreSQL. It answers GET /v1/usage and /v1/charges.

The schema is brought up to date at the start. Several may run: Kafka shares the partitions out among them.

\b
Examples:
  parshall rate --config parshall.toml
  parshall rate --config parshall.toml --listen 0.0.0.0:8081

{EXIT_CODES}"""


@click.command(help=HELP)
@options("--config", "--listen", "--admin-listen", "--kafka", "--postgres")
def rate(config: str | None, **given: object) -> None:
    from parshall.check import read_settings
    from parshall.logs import configure_logs
    from parshall.port import reserved
    from parshall.rater_process import RaterOrder, run
    from parshall.reload import OF_ALL, origin_of
    from parshall.up import bring_schema_up

    settings = read_settings(config, settings_given(given), asks_redis=False)
    demand(settings, "rate", {"Kafka": (settings.kafka.bootstrap, "--kafka"), "PostgreSQL": (settings.postgres.dsn, "--postgres")})
    configure_logs("rate")
    origin = origin_of(config, settings_given(given), {}, OF_ALL, settings)
    with reserved(settings) as addresses:
        asyncio.run(bring_schema_up(settings))
        announce(f"Parshall answers for usage and charges at {addresses.public.url}")
        sys.exit(run(RaterOrder(settings, None, addresses, origin)))
