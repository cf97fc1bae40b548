"""`parshall key`: makes an API key, and the lines of the configuration that let it in.

Must not know: where configurations are kept.
"""

from __future__ import annotations

import secrets

import click

from parshall.errors import EXIT_CODES

HELP = f"""Make an API key for a tenant.

The key is shown once, on standard error, and kept nowhere. Standard output is what the configuration needs: the key's hash.

\b
Examples:
  parshall key --tenant acme >> parshall.toml
  parshall key --tenant acme --scope read --scope admin

{EXIT_CODES}"""


@click.command(help=HELP)
@click.option("--tenant", required=True, help="Whose usage the key may send or read: a name under [[tenants]].")
@click.option(
    "--scope",
    "scopes",
    multiple=True,
    type=click.Choice(["ingest", "read", "admin"]),
    default=("ingest", "read"),
    show_default=True,
    help="What it may do.",
)
def key(tenant: str, scopes: tuple[str, ...]) -> None:
    from ingest.auth import hash_key

    made = f"pk_{secrets.token_urlsafe(32)}"
    listed = ", ".join(f'"{scope}"' for scope in dict.fromkeys(scopes))
    click.echo(f"The key, shown only now: {made}\n", err=True)
    click.echo(f'\n[[keys]]\ntenant = "{tenant}"\nhash = "{hash_key(made)}"\nscopes = [{listed}]')
