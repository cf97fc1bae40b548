-- The first schema: the ledger of counter records, usage, charges.
--
-- Names of tenants, meters and subjects are kept as text once, in `series` and `charge_lines`; the hot tables refer to those by a
-- uuid that is a digest of the names (rater/fold.py), so that no id has to be looked up before a row is written. Tables that are written
-- for every counter have no foreign keys: the rows they would point at are made in the same transaction.

CREATE TABLE tenants (
    tenant integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    book bigint  -- the price book in force; null: the tenant has none. This row's lock is what keeps rating and re-rating apart
);

CREATE TABLE price_books (
    book bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant integer NOT NULL REFERENCES tenants,
    hash text NOT NULL,  -- of the definition
    definition jsonb NOT NULL,
    loaded_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (tenant, hash)
);

ALTER TABLE tenants ADD FOREIGN KEY (book) REFERENCES price_books;

CREATE TABLE meters (
    meter integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    aggregation text NOT NULL,
    scale smallint NOT NULL,
    window_s integer NOT NULL,
    dimensions text[] NOT NULL
);

CREATE TABLE meter_hashes (
    meter integer NOT NULL REFERENCES meters,
    hash text NOT NULL,
    first_seen timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (meter, hash)
);

-- What has been applied of each writer in each partition. Its row lock makes two raters take turns.
CREATE TABLE chains (
    writer bytea NOT NULL CHECK (length(writer) = 16),
    "partition" bigint NOT NULL,
    last_n bigint NOT NULL DEFAULT 0,  -- records 1 … last_n are in `records`
    held text,  -- why nothing more is applied until an operator says so; null: all is well
    PRIMARY KEY (writer, "partition")
) WITH (fillfactor = 80);

-- The ledger: every record that was applied, with its bytes. It explains every number in usage.
CREATE TABLE records (
    writer bytea NOT NULL,
    "partition" bigint NOT NULL,
    n bigint NOT NULL,
    hash uuid NOT NULL,
    log text NOT NULL,
    stream text NOT NULL,
    next_position bigint NOT NULL,
    header_names text[] NOT NULL,
    header_values bytea[] NOT NULL,
    value bytea NOT NULL,
    rated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (writer, "partition", n)
);

-- Records that could not be applied, with their bytes and the reason.
CREATE TABLE parked (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    writer bytea,  -- writer, partition, n are null when the headers do not tell
    "partition" bigint,
    n bigint,
    hash uuid,  -- of the bytes that came, whatever the header says
    reason text NOT NULL,
    sound boolean NOT NULL,  -- whether the bytes have the hash that the header says
    missing boolean NOT NULL,  -- whether something that should be rated is not; false for a damaged copy of a record that is rated
    log text NOT NULL,
    stream text NOT NULL,
    next_position bigint NOT NULL,
    header_names text[] NOT NULL,
    header_values bytea[] NOT NULL,
    value bytea NOT NULL,
    parked_at timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX parked_place ON parked (writer, "partition", n, hash) WHERE writer IS NOT NULL;
CREATE UNIQUE INDEX parked_stray ON parked (log, stream, next_position) WHERE writer IS NULL;

-- Who a counter belongs to: one row for (tenant, meter, subject, dimension values).
CREATE TABLE series (
    series uuid PRIMARY KEY,
    tenant integer NOT NULL,
    meter integer NOT NULL,
    subject text NOT NULL,
    dimensions jsonb NOT NULL  -- values in the order of meters.dimensions
);
-- By the hash of the subject: a subject may be longer than an index entry, and an integer keeps the index small.
CREATE INDEX series_of_subject ON series (tenant, meter, hashtextextended(subject, 0));

-- The rated totals of each window. A month of one subject is a few short ranges of the primary key, one a series.
-- Nothing but the key is indexed and pages keep room, so that an update stays on its page (HOT).
CREATE TABLE usage (
    series uuid NOT NULL,
    window_start_s bigint NOT NULL,  -- seconds since 1970 UTC
    value numeric NOT NULL,  -- an integer: the value times 10^scale
    events bigint NOT NULL,
    PRIMARY KEY (series, window_start_s)
) WITH (fillfactor = 80);

-- Which price book a month of a tenant is rated with. Fixed by the first usage, changed only by re-rating.
CREATE TABLE periods (
    tenant integer NOT NULL REFERENCES tenants,
    period text NOT NULL,  -- '2026-01'
    start_s bigint NOT NULL,
    end_s bigint NOT NULL,
    book bigint REFERENCES price_books,  -- null: the tenant had no book
    PRIMARY KEY (tenant, period)
);

CREATE TABLE charge_lines (
    line uuid PRIMARY KEY,
    tenant integer NOT NULL,
    period text NOT NULL,
    subject text NOT NULL,
    meter text NOT NULL,
    price smallint NOT NULL,  -- position in the version's list of prices; -1: unpriced
    dimensions jsonb NOT NULL,  -- {name: value} of the priced dimensions
    quantity numeric NOT NULL,  -- an integer: the quantity times 10^scale
    amount numeric  -- rounded; null: unpriced
) WITH (fillfactor = 80);
CREATE INDEX charge_lines_of_subject ON charge_lines (tenant, period, hashtextextended(subject, 0));

-- Events by verdict, as the writers counted them.
CREATE TABLE tallies (
    tenant integer NOT NULL,
    writer bytea NOT NULL,
    verdict text NOT NULL,  -- received, accepted, duplicate, or a rejection code
    events bigint NOT NULL,
    PRIMARY KEY (tenant, writer, verdict)
) WITH (fillfactor = 80);

-- Where to go on reading: stored in the transaction that applied what lies before.
CREATE TABLE positions (
    log text NOT NULL,
    stream text NOT NULL,
    next_position bigint NOT NULL,
    PRIMARY KEY (log, stream)
) WITH (fillfactor = 80);

-- All that stood in the log at `as_of_us` is rated.
CREATE TABLE progress (
    log text PRIMARY KEY,
    as_of_us bigint NOT NULL
) WITH (fillfactor = 80);

-- Record bytes compress well; lz4 costs far less time than the default where the server was built with it.
DO $$
BEGIN
    ALTER TABLE records ALTER COLUMN value SET COMPRESSION lz4;
    ALTER TABLE parked ALTER COLUMN value SET COMPRESSION lz4;
EXCEPTION WHEN feature_not_supported THEN
    NULL;
END
$$;
