"""From counter records to usage and money in PostgreSQL, and the API that shows both."""
