"""The schema, as numbered steps that are never edited once released: 0001_*.sql is the step, versions/ tells Alembic the order."""
