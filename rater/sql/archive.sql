-- Moving records to files, and finding them again.

-- name: take_turns
SELECT pg_try_advisory_lock($1);

-- name: may_move
-- Changes nothing: fails where rows could not be moved, on a replica or for a role that may only read.
WITH moved AS (UPDATE records SET archive = NULL, tallies = NULL, header_names = NULL, header_values = NULL, value = NULL WHERE false)
INSERT INTO archives (file, sha256, records, last_window_s) SELECT '', '', 0, 0 WHERE false;

-- name: before
SELECT now() - make_interval(secs => $1);

-- name: due
-- The next records behind a place that were rated before $1 and have their bytes here.
SELECT writer, "partition", n, replace(hash::text, '-', '') AS hash, log, stream, next_position, rated_at, header_names, header_values, value
FROM records
WHERE archive IS NULL AND rated_at < $1 AND (writer, "partition", n) > ($2, $3, $4)
ORDER BY writer, "partition", n
LIMIT $5;

-- name: archives_add
INSERT INTO archives (file, sha256, records, last_window_s) VALUES ($1, $2, $3, $4) RETURNING archive;

-- name: records_move
UPDATE records AS r SET archive = $1, tallies = t.tallies::jsonb, header_names = NULL, header_values = NULL, value = NULL
FROM unnest($2::bytea[], $3::bigint[], $4::bigint[], $5::text[], $6::text[]) AS t (writer, "partition", n, hash, tallies)
WHERE r.writer = t.writer AND r."partition" = t."partition" AND r.n = t.n AND r.hash = t.hash::uuid AND r.archive IS NULL;

-- name: archives
SELECT archive, file, sha256, last_window_s FROM archives ORDER BY archive;

-- name: rows_of
SELECT r.writer, r."partition", r.n, replace(r.hash::text, '-', '') AS hash, r.archive, r.tallies::text AS tallies
FROM records AS r JOIN unnest($1::bytea[], $2::bigint[], $3::bigint[]) AS t (writer, "partition", n) USING (writer, "partition", n);
