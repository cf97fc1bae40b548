"""`parshall flush show | set | now`: the flush interval of a running service, over its admin API.

Must not know: how a flush works, how many workers there are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click

from parshall.admin_client import ask, ask_each, key_option, key_or_demo, nodes_options, not_parshall
from parshall.errors import EXIT_CODES

HELP = f"""Read and change how often a running service hands its counters on.

A shorter interval shows usage sooner, a longer one costs less. All workers of a node follow at once, and restarts keep it. Of several
nodes (pods) each is asked: give --url for each, or --each-address with a name that has all their addresses.

\b
Examples:
  parshall flush show
  parshall flush set --interval 5s
  parshall flush now
  parshall flush set --interval 1m --url http://parshall-ingest-pods:8081 --each-address

{EXIT_CODES}"""

_UNITS_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}


@click.group(help=HELP)
def flush() -> None:
    pass


@flush.command(help="Print the interval.")
@nodes_options
@key_option
def show(urls: Sequence[str], each_address: bool, key: str | None) -> None:
    def one(url: str) -> str:
        answer = ask("GET", url, "/v1/admin/flush", key_or_demo(url, key))
        return f"every {in_words(_interval_ms(url, answer))}"

    ask_each(urls, each_address, one)


@flush.command("set", help="Change the interval, as in 500ms, 5s or 1m.")
@click.option(
    "--interval", required=True, metavar="TIME", callback=lambda _context, _option, text: parse_interval(text), help="500ms, 5s, 1m, …"
)
@nodes_options
@key_option
def set_interval(interval: int, urls: Sequence[str], each_address: bool, key: str | None) -> None:
    def one(url: str) -> str:
        answer = ask("PUT", url, "/v1/admin/flush", key_or_demo(url, key), {"interval_ms": interval})
        return f"every {in_words(_interval_ms(url, answer))} from now on, also after a restart"

    ask_each(urls, each_address, one)


@flush.command(help="Flush at once, and return when the counters are handed on.")
@nodes_options
@key_option
def now(urls: Sequence[str], each_address: bool, key: str | None) -> None:
    def one(url: str) -> str:
        if ask("POST", url, "/v1/admin/flush/now", key_or_demo(url, key)).get("flushed") is not True:
            raise not_parshall(url)
        return "flushed"

    ask_each(urls, each_address, one)


def _interval_ms(url: str, answer: dict[str, Any]) -> int:
    interval_ms = answer.get("interval_ms")
    if not isinstance(interval_ms, int):
        raise not_parshall(url)
    return interval_ms


def parse_interval(text: str) -> int:
    """In milliseconds."""
    match = re.fullmatch(r"(\d{1,9})(ms|s|m|h)", text.strip(), re.ASCII)
    if match is None:
        raise click.BadParameter(f"{text!r} is not a number with a unit as in 500ms, 5s or 1m")
    return int(match[1]) * _UNITS_MS[match[2]]


def in_words(interval_ms: int) -> str:
    for unit in ("h", "m", "s"):
        if interval_ms >= _UNITS_MS[unit] and interval_ms % _UNITS_MS[unit] == 0:
            return f"{interval_ms // _UNITS_MS[unit]}{unit}"
    return f"{interval_ms}ms"
