-- Reading: usage, charges, the rated part of the ledger.

-- name: meter_named
SELECT meter, name, aggregation, scale, window_s, dimensions FROM meters WHERE name = $1;

-- name: meter_names
SELECT name FROM meters ORDER BY name;

-- name: as_of
SELECT max(as_of_us) FROM progress;

-- name: usage_by_window
-- $1 tenant's name, $2 meter, $3 subject or null, $4 starts of the windows asked for and the end of the last one,
-- $5 positions of the dimensions to group by, $6 whether to group by subject.
WITH keys AS MATERIALIZED (
  SELECT s.series,
    CASE WHEN $6 THEN s.subject END AS subject,
    ARRAY(SELECT s.dimensions ->> i FROM unnest($5::integer[]) WITH ORDINALITY AS g (i, k) ORDER BY k) AS dimensions
  FROM series AS s
  WHERE s.tenant = (SELECT t.tenant FROM tenants AS t WHERE t.name = $1) AND s.meter = $2
    AND ($3::text IS NULL OR (hashtextextended(s.subject, 0) = hashtextextended($3, 0) AND s.subject = $3))
)
SELECT width_bucket(u.window_start_s, $4::bigint[]) AS bucket, k.subject, k.dimensions,
  sum(u.value)::text AS total, max(u.value)::text AS greatest, sum(u.events)::bigint AS events
FROM keys AS k JOIN usage AS u USING (series)
WHERE u.window_start_s >= ($4::bigint[])[1] AND u.window_start_s < ($4::bigint[])[cardinality($4::bigint[])]
GROUP BY 1, 2, 3
ORDER BY 1, 2, 3
LIMIT $7;

-- name: period_of
SELECT p.period, p.start_s, p.end_s, b.definition
FROM tenants AS t JOIN periods AS p USING (tenant) LEFT JOIN price_books AS b ON b.book = p.book
WHERE t.name = $1 AND p.period = $2;

-- name: book_of_tenant
SELECT b.definition FROM tenants AS t JOIN price_books AS b ON b.book = t.book WHERE t.name = $1;

-- name: subjects_of_period
-- The next subjects behind $3 (null: from the first) that have a line, in the order of the index.
SELECT c.subject
FROM charge_lines AS c
WHERE c.tenant = (SELECT t.tenant FROM tenants AS t WHERE t.name = $1) AND c.period = $2
  AND hashtextextended(c.subject, 0) >= coalesce(hashtextextended($3::text, 0), -9223372036854775808)
  AND ($3 IS NULL OR hashtextextended(c.subject, 0) > hashtextextended($3, 0) OR c.subject COLLATE "C" > $3)
GROUP BY hashtextextended(c.subject, 0), c.subject
ORDER BY hashtextextended(c.subject, 0), c.subject COLLATE "C"
LIMIT $4;

-- name: lines_of_subjects
SELECT c.subject, c.meter, m.scale, c.price, c.dimensions::text AS dimensions, c.quantity::text AS quantity, c.amount::text AS amount
FROM charge_lines AS c JOIN meters AS m ON m.name = c.meter
WHERE c.tenant = (SELECT t.tenant FROM tenants AS t WHERE t.name = $1) AND c.period = $2
  AND hashtextextended(c.subject, 0) = ANY (ARRAY(SELECT hashtextextended(s, 0) FROM unnest($3::text[]) AS s)) AND c.subject = ANY ($3)
ORDER BY c.meter, c.price, c.dimensions
LIMIT $4;

-- name: tallies_of
-- Of one tenant, or of all when $1 is null.
SELECT t.name AS tenant, s.writer, s.verdict, s.events
FROM tallies AS s JOIN tenants AS t USING (tenant)
WHERE $1::text IS NULL OR t.name = $1
ORDER BY 1, 2, 3;

-- name: chains
SELECT c.writer, c."partition", c.last_n, c.held,
  (SELECT count(*) FROM parked AS p WHERE p.writer = c.writer AND p."partition" = c."partition") AS parked
FROM chains AS c
ORDER BY 1, 2;

-- name: parked
SELECT id, writer, "partition", n, reason, missing, sound, log, stream, next_position, octet_length(value) AS bytes, parked_at
FROM parked
ORDER BY id
LIMIT $1;

-- name: parked_numbered
SELECT header_names, header_values, value FROM parked WHERE id = $1;

-- name: held
-- Every chain in which something that should be rated is not, with the parked record that has the lowest number.
SELECT c.writer, c."partition", c.last_n, c.held, p.waiting, p.since, f.id, f.n, f.sound, f.reason, p.last_unsound
FROM chains AS c
JOIN LATERAL (
  SELECT count(*) AS waiting, min(parked_at) AS since, max(n) FILTER (WHERE NOT sound) AS last_unsound
  FROM parked AS p WHERE p.writer = c.writer AND p."partition" = c."partition" AND p.missing
) AS p ON true
LEFT JOIN LATERAL (
  SELECT id, n, sound, reason FROM parked AS p
  WHERE p.writer = c.writer AND p."partition" = c."partition" AND p.missing
  ORDER BY n, id LIMIT 1
) AS f ON true
WHERE c.held IS NOT NULL OR p.waiting > 0
ORDER BY 1, 2;

-- name: strays
SELECT id, stream, next_position, reason, parked_at FROM parked WHERE writer IS NULL AND missing ORDER BY id LIMIT $1;

-- name: rating
-- For the metrics: how far, and what is held.
SELECT (SELECT max(as_of_us) FROM progress) AS as_of_us,
  (SELECT count(*) FROM parked) AS parked,
  (SELECT count(*) FROM parked WHERE missing) AS missing,
  (SELECT count(*) FROM chains WHERE held IS NOT NULL) AS held,
  (SELECT count(DISTINCT (writer, "partition")) FROM parked WHERE missing AND writer IS NOT NULL) AS waiting;

-- name: positions
SELECT stream, next_position FROM positions WHERE log = $1;
