"""`parshall key`: makes an API key, and the lines of the configuration that let it in.

Must not know: where configurations are kept.
"""

from __future__ import annotations

import secrets

import click

from parshall.errors import EXIT_CODES

HELP = f"""Make an API key for a tenant.

The key is printed once and kept nowhere; the configuration gets its hash, so nobody can read the key there.

\b
Examples:
  parshall key --tenant acme
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
    click.echo("The key, shown only now:", err=True)
    click.echo(made)
    click.echo("\nFor the configuration:\n", err=True)
    click.echo(f'[[keys]]\ntenant = "{tenant}"\nhash = "{hash_key(made)}"\nscopes = [{listed}]')
