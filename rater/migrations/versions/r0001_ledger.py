"""Step 0001: the ledger, usage, charges."""

from rater.migrate import run_sql

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql("0001_ledger.sql")
