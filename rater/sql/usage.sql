-- Meters, tenants, usage and tallies.

-- name: meters_turn
-- New meters are rare; whoever adds some takes turns, so the order in which records name them does not matter.
SELECT pg_advisory_xact_lock(hashtext('parshall new meters'));

-- name: meters_add
INSERT INTO meters (name, aggregation, scale, window_s, dimensions) VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING;

-- name: meter_named
SELECT meter, name, aggregation, scale, window_s, dimensions FROM meters WHERE name = $1;

-- name: meters_known
SELECT name, aggregation, scale, window_s, dimensions FROM meters ORDER BY meter;

-- name: meter_hashes_add
INSERT INTO meter_hashes (meter, hash) VALUES ($1, $2) ON CONFLICT DO NOTHING;

-- name: tenants_add
INSERT INTO tenants (name)
SELECT name FROM unnest($1::text[]) AS t (name)
ORDER BY name
ON CONFLICT DO NOTHING;

-- name: tenants_lock
-- Shared: raters do not wait for each other here, only for a re-rating, which locks FOR UPDATE.
SELECT tenant, name, book FROM tenants WHERE name = ANY ($1::text[]) ORDER BY name FOR KEY SHARE;

-- name: series_add
INSERT INTO series (series, tenant, meter, subject, dimensions)
SELECT series::uuid, tenant, meter, subject, dimensions::jsonb
FROM unnest($1::text[], $2::integer[], $3::integer[], $4::text[], $5::text[]) AS t (series, tenant, meter, subject, dimensions)
ORDER BY series
ON CONFLICT DO NOTHING;

-- name: folded_make
-- What a batch adds to usage, on its way there.
CREATE TEMPORARY TABLE folded (maximum boolean, series uuid, window_start_s bigint, value numeric, events bigint) ON COMMIT DELETE ROWS;

-- name: usage_add
INSERT INTO usage AS u (series, window_start_s, value, events)
SELECT series, window_start_s, value, events FROM folded WHERE NOT maximum
ORDER BY series, window_start_s
ON CONFLICT (series, window_start_s) DO UPDATE SET value = u.value + excluded.value, events = u.events + excluded.events;

-- name: usage_raise
INSERT INTO usage AS u (series, window_start_s, value, events)
SELECT series, window_start_s, value, events FROM folded WHERE maximum
ORDER BY series, window_start_s
ON CONFLICT (series, window_start_s) DO UPDATE SET value = greatest(u.value, excluded.value), events = u.events + excluded.events;

-- name: tallies_add
INSERT INTO tallies AS s (tenant, writer, verdict, events)
SELECT tenant, writer, verdict, events
FROM unnest($1::integer[], $2::bytea[], $3::text[], $4::bigint[]) AS t (tenant, writer, verdict, events)
ORDER BY tenant, writer, verdict
ON CONFLICT (tenant, writer, verdict) DO UPDATE SET events = s.events + excluded.events;
