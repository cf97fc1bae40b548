-- Taking records in. Every statement that locks or writes several rows does so in the order of the key, so two raters cannot deadlock.

-- name: chains_add
INSERT INTO chains (writer, "partition")
SELECT writer, "partition" FROM unnest($1::bytea[], $2::bigint[]) AS t (writer, "partition")
ORDER BY writer, "partition"
ON CONFLICT DO NOTHING;

-- name: chains_lock
SELECT c.writer, c."partition", c.last_n, c.held
FROM chains AS c JOIN unnest($1::bytea[], $2::bigint[]) AS t (writer, "partition") USING (writer, "partition")
ORDER BY c.writer, c."partition"
FOR UPDATE OF c;

-- name: chains_store
UPDATE chains AS c SET last_n = t.last_n, held = t.held
FROM unnest($1::bytea[], $2::bigint[], $3::bigint[], $4::text[]) AS t (writer, "partition", last_n, held)
WHERE c.writer = t.writer AND c."partition" = t."partition";

-- name: records_known
-- Sound hashes that came before under these numbers, applied or parked.
SELECT r.writer, r."partition", r.n, replace(r.hash::text, '-', '') AS hash
FROM records AS r JOIN unnest($1::bytea[], $2::bigint[], $3::bigint[]) AS t (writer, "partition", n) USING (writer, "partition", n)
UNION ALL
SELECT p.writer, p."partition", p.n, replace(p.hash::text, '-', '')
FROM parked AS p JOIN unnest($1::bytea[], $2::bigint[], $3::bigint[]) AS t (writer, "partition", n) USING (writer, "partition", n)
WHERE p.sound;

-- name: parked_next
-- What is parked next in a chain, the lowest numbers first.
SELECT id, n, log, stream, next_position, header_names, header_values, value
FROM parked
WHERE writer = $1 AND "partition" = $2 AND n > $3 AND sound
ORDER BY n, id
LIMIT $4;

-- name: parked_add
-- A sound record takes the place of a copy with these bytes that must not be applied and is still missed: one that came behind a fork, or
-- with damaged headers. One that a person has rejected is explained, and stays as it is.
INSERT INTO parked AS p (writer, "partition", n, hash, reason, sound, missing, log, stream, next_position, header_names, header_values, value)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
ON CONFLICT (writer, "partition", n, hash) WHERE writer IS NOT NULL DO UPDATE
SET reason = excluded.reason, sound = excluded.sound, missing = excluded.missing, log = excluded.log, stream = excluded.stream,
  next_position = excluded.next_position, header_names = excluded.header_names, header_values = excluded.header_values
WHERE excluded.sound AND NOT p.sound AND p.missing;

-- name: stray_add
-- A record without a place.
INSERT INTO parked (hash, reason, sound, missing, log, stream, next_position, header_names, header_values, value)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
ON CONFLICT DO NOTHING;

-- name: stray_accept
-- An operator looked at a record without a place: it stays, but counts as explained.
UPDATE parked SET missing = false WHERE writer IS NULL AND id = $1;

-- name: parked_applied
DELETE FROM parked WHERE id = ANY ($1::bigint[]);

-- name: parked_settle
-- A damaged copy, or one that came behind a fork, misses nothing once its record is applied.
UPDATE parked SET missing = false
WHERE writer = $1 AND "partition" = $2 AND n <= $3 AND missing AND NOT sound;

-- name: chains_due
-- Chains in which the record that is due lies parked.
SELECT c.writer, c."partition"
FROM chains AS c
WHERE c.held IS NULL
  AND EXISTS (SELECT FROM parked AS p WHERE p.writer = c.writer AND p."partition" = c."partition" AND p.n = c.last_n + 1 AND p.sound)
ORDER BY 1, 2;

-- name: chain_release
UPDATE chains SET held = NULL WHERE writer = $1 AND "partition" = $2 AND held IS NOT NULL;

-- name: parked_accept
-- An operator looked at the forks of a chain: they stay, but count as explained.
UPDATE parked SET missing = false
WHERE writer = $1 AND "partition" = $2 AND missing
  AND n <= (SELECT last_n FROM chains WHERE writer = $1 AND "partition" = $2);

-- name: parked_rivals
-- The sound records of a chain that are parked under one number: both sides of a fork, neither of them rated.
SELECT p.id, p.n
FROM chains AS c JOIN parked AS p ON p.writer = c.writer AND p."partition" = c."partition" AND p.n > c.last_n AND p.sound
WHERE c.writer = $1 AND c."partition" = $2
  AND EXISTS (SELECT FROM parked AS q WHERE q.writer = p.writer AND q."partition" = p."partition" AND q.n = p.n AND q.sound AND q.id <> p.id)
ORDER BY p.n, p.id;

-- name: parked_reject
-- An operator has found out that these are of the wrong journal: they stay, explained, and are never applied.
UPDATE parked SET sound = false, missing = false WHERE id = ANY ($1::bigint[]);

-- name: parked_choose
-- And that these are of the right one.
UPDATE parked SET reason = $2 WHERE id = ANY ($1::bigint[]);

-- name: parked_leave_out
-- What nobody chose (reason $5) of that which is parked behind a fork: of which journal it is, nothing tells. It has to come again.
UPDATE parked SET sound = false, missing = true, reason = $4
WHERE writer = $1 AND "partition" = $2 AND n > $3 AND sound AND reason <> $5
RETURNING n;

-- name: parked_take_up
-- A person found out that these bytes, left out behind a fork, are of the right journal; $4: one record, or null for all.
UPDATE parked SET sound = true, reason = $5
WHERE writer = $1 AND "partition" = $2 AND reason = $3 AND missing AND NOT sound AND id = coalesce($4, id);

-- name: parked_give_up
-- A person found out that what is still left out behind a fork is of the wrong journal.
UPDATE parked SET missing = false WHERE writer = $1 AND "partition" = $2 AND reason = $3 AND missing AND NOT sound;

-- name: positions_of
SELECT stream, next_position FROM positions WHERE log = $1 AND stream = ANY ($2::text[]);

-- name: positions_store
-- Never backwards: all that lies before a stored position is committed, whichever rater did it.
INSERT INTO positions AS p (log, stream, next_position)
SELECT $1, stream, next_position FROM unnest($2::text[], $3::bigint[]) AS t (stream, next_position)
ORDER BY stream
ON CONFLICT (log, stream) DO UPDATE SET next_position = greatest(p.next_position, excluded.next_position);

-- name: progress_store
-- All that stood in the log at $2 is rated: true only when every stream is rated to the end it had then, and nothing is missing.
INSERT INTO progress AS p (log, as_of_us)
SELECT $1, $2
WHERE NOT EXISTS (SELECT FROM parked WHERE missing)
  AND NOT EXISTS (
    SELECT FROM unnest($3::text[], $4::bigint[]) AS t (stream, end_position)
    WHERE t.end_position > coalesce((SELECT s.next_position FROM positions AS s WHERE s.log = $1 AND s.stream = t.stream), 0))
ON CONFLICT (log) DO UPDATE SET as_of_us = greatest(p.as_of_us, excluded.as_of_us)
RETURNING as_of_us;
