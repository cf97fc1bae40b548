-- Periods and charge lines.

-- name: book_numbered
SELECT definition FROM price_books WHERE book = $1;

-- name: periods_of
SELECT p.tenant, p.period, p.book
FROM periods AS p JOIN unnest($1::integer[], $2::text[]) AS t (tenant, period) USING (tenant, period);

-- name: periods_add
-- Under the lock of the tenants' rows every rater would add the same.
INSERT INTO periods (tenant, period, start_s, end_s, book)
SELECT tenant, period, start_s, end_s, book
FROM unnest($1::integer[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[]) AS t (tenant, period, start_s, end_s, book)
ORDER BY tenant, period
ON CONFLICT DO NOTHING;

-- name: lines_add
INSERT INTO charge_lines (line, tenant, period, subject, meter, price, dimensions, quantity, amount)
SELECT line::uuid, tenant, period, subject, meter, price, dimensions::jsonb, quantity::numeric, amount::numeric
FROM unnest($1::text[], $2::integer[], $3::text[], $4::text[], $5::text[], $6::smallint[], $7::text[], $8::text[], $9::text[])
  AS t (line, tenant, period, subject, meter, price, dimensions, quantity, amount)
ORDER BY line
ON CONFLICT DO NOTHING
RETURNING replace(line::text, '-', '');

-- name: lines_lock
SELECT replace(line::text, '-', '') AS line, quantity::text AS quantity
FROM charge_lines
WHERE line = ANY ($1::text[]::uuid[])
ORDER BY charge_lines.line
FOR UPDATE;

-- name: lines_store
UPDATE charge_lines AS c SET quantity = t.quantity::numeric, amount = t.amount::numeric
FROM unnest($1::text[], $2::text[], $3::text[]) AS t (line, quantity, amount)
WHERE c.line = t.line::uuid;

-- name: tenant_lock_alone
-- Keeps every rater out of this tenant until the end of the transaction.
SELECT tenant, book FROM tenants WHERE name = $1 FOR UPDATE;

-- name: book_find
SELECT book FROM price_books WHERE tenant = $1 AND hash = $2;

-- name: book_add
INSERT INTO price_books (tenant, hash, definition) VALUES ($1, $2, $3) RETURNING book;

-- name: tenant_set_book
UPDATE tenants SET book = $2 WHERE tenant = $1;

-- name: periods_of_tenant
SELECT period, start_s, end_s, book FROM periods WHERE tenant = $1 ORDER BY period;

-- name: period_set_book
UPDATE periods SET book = $3 WHERE tenant = $1 AND period = $2;

-- name: period_set_bounds
UPDATE periods SET start_s = $3, end_s = $4 WHERE tenant = $1 AND period = $2;

-- name: periods_remove
DELETE FROM periods WHERE tenant = $1;

-- name: lines_remove
DELETE FROM charge_lines WHERE tenant = $1 AND ($2::text IS NULL OR period = $2);

-- name: usage_bounds
SELECT min(u.window_start_s) AS first_s, max(u.window_start_s) AS last_s
FROM usage AS u JOIN series AS s USING (series)
WHERE s.tenant = $1;

-- name: usage_of_period
-- The totals of every series of a tenant in [$2, $3): what charges are computed from.
SELECT m.name, m.aggregation, m.scale, m.window_s, m.dimensions AS names, s.subject, s.dimensions::text AS dimensions,
  CASE WHEN m.aggregation = 'max' THEN max(u.value) ELSE sum(u.value) END::text AS quantity
FROM usage AS u JOIN series AS s USING (series) JOIN meters AS m USING (meter)
WHERE s.tenant = $1 AND u.window_start_s >= $2 AND u.window_start_s < $3
GROUP BY s.series, m.meter
ORDER BY s.series;

-- name: totals_of_period
-- Of each subject; what has no price has no amount.
SELECT subject, coalesce(sum(amount), 0)::text AS total, bool_or(amount IS NULL) AS unpriced
FROM charge_lines WHERE tenant = $1 AND period = $2
GROUP BY subject
ORDER BY subject;

-- name: lines_of_period
SELECT replace(line::text, '-', '') AS line, quantity::text AS quantity, amount::text AS amount
FROM charge_lines WHERE tenant = $1 AND period = $2;
