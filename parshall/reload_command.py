"""`parshall reload`: a running service reads its configuration again, over its admin API.

Must not know: what follows and what does not.
"""

from __future__ import annotations

import click

from parshall.admin_client import ask, key_option, key_or_demo, url_option
from parshall.errors import EXIT_CODES

HELP = f"""Let a running service read its configuration file again, without missing a request.

New tenants, keys, meters and price books are in force at once, in all its workers. Where anything in the file is wrong nothing changes, and
the reason is told. What needs a restart is named. SIGHUP does the same; its outcome is in the log.

\b
Examples:
  parshall reload
  parshall reload --url http://10.0.0.7:8080

{EXIT_CODES}"""


@click.command(help=HELP)
@url_option
@key_option
def reload(url: str, key: str | None) -> None:
    answer = ask("POST", url, "/v1/admin/reload", key_or_demo(url, key))
    in_force, after_restart = answer.get("in_force") or [], answer.get("after_restart") or []
    click.echo(f"in force now: {', '.join(in_force)}" if in_force else "nothing changed that can follow without a restart")
    if after_restart:
        click.echo(f"after a restart: {', '.join(after_restart)}")
