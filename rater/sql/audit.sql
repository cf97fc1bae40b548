-- The audit: what is stored, as it is stored, to be counted again outside the database.

-- name: records
SELECT writer, "partition", n, header_names, header_values, value FROM records ORDER BY writer, "partition", n;

-- name: parked
SELECT writer, "partition", n, reason FROM parked WHERE writer IS NOT NULL AND missing;

-- name: usage
SELECT t.name AS tenant, m.name AS meter, s.subject, s.dimensions::text AS dimensions, u.window_start_s, u.value::text AS value, u.events
FROM usage AS u JOIN series AS s USING (series) JOIN tenants AS t USING (tenant) JOIN meters AS m USING (meter);

-- name: tallies
SELECT t.name AS tenant, s.writer, s.verdict, s.events FROM tallies AS s JOIN tenants AS t USING (tenant);

-- name: tenants
SELECT name FROM tenants ORDER BY name;
