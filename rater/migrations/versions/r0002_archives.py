"""Step 0002: records may be in files."""

from rater.migrate import run_sql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    run_sql("0002_archives.sql")
