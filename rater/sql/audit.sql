-- The audit: what is stored, as it is stored, to be counted again outside the database.

-- name: newest_column
-- Before all: an unknown column tells of tables of an older Parshall, an unknown table of another database (parshall/database.py).
SELECT archive FROM records LIMIT 0;

-- name: records
SELECT writer, "partition", n, replace(hash::text, '-', '') AS hash, log, stream, next_position, header_names, header_values, value,
  archive, tallies::text AS tallies
FROM records ORDER BY writer, "partition", n;

-- name: hashes
SELECT r.writer, r."partition", r.n, replace(r.hash::text, '-', '') AS hash
FROM records AS r JOIN unnest($1::bytea[], $2::bigint[], $3::bigint[]) AS t (writer, "partition", n) USING (writer, "partition", n);

-- name: chains
SELECT writer, "partition", last_n, held FROM chains ORDER BY writer, "partition";

-- name: parked
SELECT writer, "partition", n, stream, next_position, reason, missing FROM parked WHERE missing OR writer IS NULL ORDER BY id;

-- name: usage
SELECT t.name AS tenant, m.name AS meter, s.subject, s.dimensions::text AS dimensions, u.window_start_s, u.value::text AS value, u.events
FROM usage AS u JOIN series AS s USING (series) JOIN tenants AS t USING (tenant) JOIN meters AS m USING (meter);

-- name: tallies
SELECT t.name AS tenant, s.writer, s.verdict, s.events FROM tallies AS s JOIN tenants AS t USING (tenant);

-- name: tenants
SELECT name FROM tenants ORDER BY name;

-- name: lines
-- Charge lines as they are stored, with what they say of themselves.
SELECT replace(line::text, '-', '') AS line, subject, meter, price, dimensions::text AS dimensions,
  quantity::text AS quantity, amount::text AS amount
FROM charge_lines WHERE tenant = $1 AND period = $2;

-- name: lines_astray
-- Charge lines of a month that the tenant has no usage in.
SELECT c.period, c.subject, c.meter
FROM charge_lines AS c
WHERE c.tenant = $1 AND NOT EXISTS (SELECT FROM periods AS p WHERE p.tenant = c.tenant AND p.period = c.period)
ORDER BY 1, 2, 3;

-- name: usage_astray
-- Usage of a tenant that lies in none of its months, by the first window of each meter of a subject.
SELECT s.subject, m.name AS meter, min(u.window_start_s) AS first_s
FROM usage AS u JOIN series AS s USING (series) JOIN meters AS m USING (meter)
WHERE s.tenant = $1
  AND NOT EXISTS (
    SELECT FROM periods AS p WHERE p.tenant = $1 AND u.window_start_s >= p.start_s AND u.window_start_s < p.end_s)
GROUP BY 1, 2
ORDER BY 1, 2;
