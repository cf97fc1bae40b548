"""What Alembic runs for every command: the steps, on the connection that rater/migrate.py hands over, in its transaction."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], version_table="schema_steps")
context.run_migrations()
