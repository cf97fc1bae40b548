"""`parshall check`: is this configuration right, and if not, what is wrong where; and the page with every setting.

Must not know: how settings are validated, what is done with them.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from parshall.errors import EXIT_CODES, FAILED, Stop
from parshall.streams import say

if TYPE_CHECKING:
    from parshall.settings import Settings

HELP = f"""Check the configuration FILE: settings, catalogue and prices, together with PARSHALL_… variables.

Every problem is named at once: file and line, setting, what is wrong, what is allowed.

\b
Examples:
  parshall check parshall.toml
  parshall check --defaults > parshall.toml    a new file with every setting, explained

{EXIT_CODES}"""


@click.command(help=HELP)
@click.argument("file", required=False)
@click.option("--defaults", is_flag=True, help="Print a configuration with every setting, its default and its meaning.")
def check(file: str | None, defaults: bool) -> None:
    if defaults:
        from parshall.settings_page import settings_page

        click.echo(settings_page(), nl=False)
        return
    if file is None:
        raise click.UsageError("Name the FILE to check, or use --defaults to print one.")
    click.echo(f"{file} is right: {_summary(read_settings(file, {}, failed=FAILED))}")


def read_settings(
    file: str | None,
    options: dict[str, object],
    *,
    defaults: dict[str, object] | None = None,
    asks_redis: bool = True,
    failed: int = 2,
) -> Settings:
    """For every command: the settings in force, or the end of the command with everything that is wrong with them."""
    from parshall.settings import BadSettings, load_settings, near_misses

    for name, meant in near_misses(os.environ):
        say(f"{name} is no setting and is ignored; did you mean {meant}?")
    try:
        return load_settings(file, environment=os.environ, options=options, defaults=defaults, asks_redis=asks_redis)
    except BadSettings as bad:
        raise Stop("\n".join(map(str, bad.problems)), failed) from None


def _summary(settings: Settings) -> str:
    parts = [
        _counted(len(settings.tenants), "tenant"),
        _counted(len(settings.keys), "key"),
        _counted(len(settings.meters), "meter"),
        _counted(len(settings.price_books), "price book"),
    ]
    return ", ".join(parts) + "."


def _counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
