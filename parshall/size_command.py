"""`parshall size`: from a workload to what it needs of every part, and what breaks first.

Belongs here: the options and what they may be. Must not know: the model (sizing.py), how it is shown (size_report.py).
"""

from __future__ import annotations

import re
from typing import Any

import click

from parshall.errors import EXIT_CODES, USAGE, Stop
from parshall.sizing import Machines, Workload
from parshall.time_option import Time, milliseconds

HELP = f"""Say what a workload needs: writers, Redis, Kafka, journals and PostgreSQL, and which of them breaks first.

Reckoned from what was measured, each figure with a margin (docs/PERFORMANCE.md); nothing is started or asked. Numbers may be written as 10k
or 10M. The rate is the highest that lasts, not that of a second: everything kept is reckoned as if it always held.

\b
Examples:
  parshall size --events-per-second 10k --subjects 10k --meters 3
  parshall size --events-per-second 1M --max-age 1h --subjects 100k --meters 3 --flush-interval 1m --valkey
  parshall size --events-per-second 10k --subjects 10k --meters 3 --json | jq .bottleneck

{EXIT_CODES}"""

_THOUSANDS = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_GIB = 1 << 30


class Count(click.ParamType[int]):
    """A whole number from 1 on, also as 10k or 10M."""

    name = "count"

    def __init__(self, most: int) -> None:
        self.most = most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"(\d{1,15})([kMG]?)", str(value), re.ASCII)
        number = int(match[1]) * _THOUSANDS[match[2]] if match else 0
        if not 1 <= number <= self.most:
            self.fail(f"{value!r} is not a whole number from 1 to {self.most:,}, as in 500, 10k or 10M.", param, ctx)
        return number


_NUMBER = Count(1_000_000_000)
_PERCENT = click.IntRange(1, 100)


@click.command(help=HELP)
@click.option("--events-per-second", required=True, type=Count(100_000_000), metavar="N", help="The highest rate that lasts.")
@click.option("--subjects", required=True, type=_NUMBER, metavar="N", help="Customers whose usage is told apart, of all tenants.")
@click.option("--meters", required=True, type=Count(1_000), metavar="N", help="Meters that a subject uses.")
@click.option(
    "--max-age", "max_age_s", default="24h", show_default=True, type=Time("1m", "30d"), metavar="TIME", help="How late an event may come."
)
@click.option("--max-skew", "max_skew_s", default="5m", show_default=True, type=Time("0s", "1d"), metavar="TIME", help="How early.")
@click.option("--values", default="4", show_default=True, type=_NUMBER, metavar="N", help="Dimension values of one subject and meter.")
@click.option("--meters-per-event", default="1", show_default=True, type=Count(1_000), metavar="N", help="Meters that one event feeds.")
@click.option("--window", "window_s", default="1h", show_default=True, type=click.Choice(["1m", "15m", "1h", "1d"]), help="Of the meters.")
@click.option("--late-percent", default=1, show_default=True, type=click.IntRange(0, 100), help="Events whose window is over.")
@click.option("--events-per-request", default="1k", show_default=True, type=Count(1_000_000), metavar="N", help="Few make requests dear.")
@click.option("--event-bytes", default="220", show_default=True, type=Count(1_000_000), metavar="N", help="Of one event in a request.")
@click.option("--tenants", default="1", show_default=True, type=_NUMBER, metavar="N", help="How many share the rate.")
@click.option("--largest-tenant-percent", type=_PERCENT, help="Its share of the events. [default: all are alike]")
@click.option(
    "--flush-interval",
    "flush_interval_ms",
    default="10s",
    show_default=True,
    type=Time("10ms", "1h", "ms"),
    metavar="TIME",
    help="Longer folds more.",
)
@click.option("--routed", is_flag=True, help="Senders or a balancer give all events of a subject to one writer.")
@click.option("--valkey", is_flag=True, help="Valkey in the place of Redis: less memory, less CPU.")
@click.option("--packed", is_flag=True, help="Claims in the layout `packed` (redis.layout): less memory, more CPU.")
@click.option("--partitions", type=click.IntRange(1, 100_000), metavar="N", help="Of usage.counters. [default: as many as are needed]")
@click.option("--replication", default=3, show_default=True, type=click.IntRange(1, 9), metavar="N", help="Of Kafka.")
@click.option("--retention", "retention_s", default="7d", show_default=True, type=Time("1h", "3650d"), metavar="TIME", help="Of Kafka.")
@click.option(
    "--months", "kept_months", default=13, show_default=True, type=click.IntRange(1, 240), help="That PostgreSQL must have room for."
)
@click.option(
    "--archive-after",
    "archived_s",
    type=Time("1d", "36500d"),
    metavar="TIME",
    help="When `parshall archive` moves records. [default: never]",
)
@click.option("--busy-percent", default=60, show_default=True, type=_PERCENT, help="Of a core that may be used for good.")
@click.option(
    "--start", "start_s", default="10m", show_default=True, type=Time("1s", "1d"), metavar="TIME", help="A writer may take to start."
)
@click.option("--redis-gib", default=64, show_default=True, type=click.IntRange(1, 65_536), help="Memory of one primary for claims.")
@click.option("--postgres-cores", default=16, show_default=True, type=click.IntRange(1, 1_024), help="Of the database.")
@click.option("--postgres-gib", default=4_096, show_default=True, type=click.IntRange(1, 1_048_576), help="Disk of the database.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: plain numbers in the units that their names say.")
def size(
    as_json: bool,
    window_s: str,
    largest_tenant_percent: int | None,
    partitions: int | None,
    archived_s: int | None,
    busy_percent: int,
    start_s: int,
    redis_gib: int,
    postgres_cores: int,
    postgres_gib: int,
    **given: Any,
) -> None:
    from parshall import size_report, sizing

    window = milliseconds(window_s)
    assert window is not None
    absent: dict[str, Any] = {
        "largest_tenant_percent": largest_tenant_percent or 0,
        "partitions": partitions or 0,
        "archived_s": archived_s or 0,
    }
    workload = Workload(**given, **absent, window_s=window // 1000)
    _refuse_what_cannot_be(workload)
    machines = Machines(busy_percent, start_s, redis_gib * _GIB, postgres_cores, postgres_gib * _GIB)
    found = sizing.size(workload, machines)
    click.echo(size_report.as_json(found) if as_json else size_report.as_text(found))


def _refuse_what_cannot_be(workload: Workload) -> None:
    if workload.meters_per_event > workload.meters:
        raise Stop(f"An event cannot feed {workload.meters_per_event:,} meters where --meters is {workload.meters:,}.", USAGE)
    largest, tenants = workload.largest_tenant_percent, workload.tenants
    if largest and largest * tenants < 100:
        raise Stop(f"The largest of {tenants:,} tenants has more than {largest} % of the events: raise --largest-tenant-percent.", USAGE)
    if workload.tenants > workload.subjects:
        raise Stop(f"{tenants:,} tenants need a subject each, and --subjects is {workload.subjects:,}.", USAGE)
