"""Named SQL statements, a topic a file. `-- name: what_it_does` begins a statement; rater/statements.py reads them."""
