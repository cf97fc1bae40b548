"""`parshall reload`: a running service reads its configuration again, over its admin API.

Must not know: what follows and what does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from parshall.admin_client import ask, ask_each, key_option, key_or_demo, nodes_options, not_parshall
from parshall.errors import EXIT_CODES

HELP = f"""Let a running service read its configuration file again, without missing a request.

New tenants, keys, meters and price books are in force at once, in all its workers. Where anything in the file is wrong nothing changes, and
the reason is told. What needs a restart is named. SIGHUP does the same; its outcome is in the log. Each node reads its own file.

\b
Examples:
  parshall reload
  parshall reload --url http://parshall-ingest-pods:8081 --each-address

{EXIT_CODES}"""


@click.command(help=HELP)
@nodes_options
@key_option
def reload(urls: Sequence[str], each_address: bool, key: str | None) -> None:
    def one(url: str) -> str:
        answer = ask("POST", url, "/v1/admin/reload", key_or_demo(url, key))
        in_force, after_restart = _names(url, answer, "in_force"), _names(url, answer, "after_restart")
        lines = [f"in force now: {', '.join(in_force)}" if in_force else "nothing changed that can follow without a restart"]
        return "\n".join(lines + ([f"after a restart: {', '.join(after_restart)}"] if after_restart else []))

    ask_each(urls, each_address, one)


def _names(url: str, answer: dict[str, Any], what: str) -> list[str]:
    names = answer.get(what)
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isprintable() for name in names):
        raise not_parshall(url)
    return names
