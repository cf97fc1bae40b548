"""`parshall recharge`: charge a month again by the price book in force, although it is final.

Belongs here: the command, and how its outcome is told. Must not know: SQL, how lines are computed.
"""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from parshall.database import dsn_given
from parshall.errors import EXIT_CODES, UNAVAILABLE, USAGE, Stop
from parshall.roles import options

if TYPE_CHECKING:
    from rater.recharge import Changed, Recharge, Total

HELP = f"""Charge a month again by the price book in force, also one that is final.

A final month keeps the prices that it was charged with, whatever the book says later. Where these were wrong: mend the book, let the rater
read it (`parshall reload`), and say here which month is to be charged by it. Usage stays as it is.

Without --yes nothing is changed: it is shown whose totals would be others. Keep that, if invoices have gone out.

\b
Examples:
  parshall recharge 2026-10 --tenant acme --config parshall.toml
  parshall recharge 2026-10 --tenant acme --config parshall.toml --yes

{EXIT_CODES}"""


@click.command(help=HELP)
@click.argument("month", metavar="YYYY-MM")
@click.option("--tenant", required=True, metavar="NAME", help="Whose month it is.")
@click.option("--yes", "apply", is_flag=True, help="Do it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options("--config", "--data", "--postgres")
def recharge(month: str, tenant: str, apply: bool, as_json: bool, config: str | None, **given: object) -> None:
    from rater.period import parse_label
    from rater.postgres import DatabaseFailed, Ledger
    from rater.recharge import NotCharged

    try:
        parse_label(month)
    except ValueError as error:
        raise Stop(f"{month} is no month; allowed: {error}.", USAGE) from None
    dsn = dsn_given("recharge", config, given)

    async def run() -> Recharge:
        ledger = Ledger(dsn)
        try:
            return await ledger.recharge(tenant, month, apply=apply)
        except DatabaseFailed as error:
            raise Stop(
                f"PostgreSQL cannot be asked: {error}. Without --yes this command says what is still to change.", UNAVAILABLE
            ) from error
        except NotCharged as error:
            raise Stop(str(error), USAGE) from None
        finally:
            await ledger.close()

    done = asyncio.run(run())
    click.echo(json.dumps(as_object(tenant, month, done, apply), indent=2, ensure_ascii=False) if as_json else as_text(month, done, apply))


def as_object(tenant: str, month: str, done: Recharge, applied: bool) -> dict[str, Any]:
    return {
        "tenant": tenant,
        "period": month,
        "applied": applied,
        "before": {"currency": done.before_currency, "total": _text(done.before)},
        "after": {"currency": done.after_currency, "total": _text(done.after)},
        "subjects": [{"subject": one.subject, "before": _total(one.before), "after": _total(one.after)} for one in done.changed],
    }


def _total(total: Total | None) -> dict[str, Any] | None:
    return None if total is None else {"total": _text(total.amount), "unpriced": total.unpriced}


def as_text(month: str, done: Recharge, applied: bool) -> str:
    if not done.changed and done.before_currency == done.after_currency:
        return f"{month} comes to {_text(done.after)} {done.after_currency} by the price book in force, as it did: no total changes."
    lines = [_changed(one, done) for one in done.changed]
    whole = f"{_text(done.before)} {done.before_currency} -> {_text(done.after)} {done.after_currency}"
    if applied:
        return "\n".join([*lines, f"{month} is charged again: {whole}."])
    return "\n".join([*lines, f"{month} would be charged again: {whole}. Nothing has changed; with --yes it does."])


def _changed(one: Changed, done: Recharge) -> str:
    """A subject may hold line breaks and what a terminal obeys: then it is shown as JSON writes it."""
    subject = one.subject if one.subject.isprintable() else json.dumps(one.subject)
    before, after = ("", "") if done.before_currency == done.after_currency else (done.before_currency, done.after_currency)
    return f"{subject}: {_shown(one.before, before)} -> {_shown(one.after, after)}"


def _shown(total: Total | None, currency: str) -> str:
    if total is None:
        return "nothing"
    return f"{_text(total.amount)} {currency}".rstrip() + (", some of it unpriced" if total.unpriced else "")


def _text(amount: Decimal) -> str:
    return format(amount, "f")
