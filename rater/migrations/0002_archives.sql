-- Records that were moved to files (`parshall archive`). A row of `records` stays for good: by its place and its hash a record that comes again
-- is known, and a fork. Only its bytes go.

CREATE TABLE archives (
    archive bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    file text NOT NULL UNIQUE,  -- its name, wherever the operator keeps it
    sha256 text NOT NULL,  -- of the file, 64 hexadecimal digits
    records bigint NOT NULL,
    last_window_s bigint,  -- the latest start of a window in it; null: it has no counters
    made_at timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE records
    ADD COLUMN archive bigint,  -- where the bytes are; null: here
    ADD COLUMN tallies jsonb,  -- of an archived record that has some: what its bytes say of them
    ALTER COLUMN header_names DROP NOT NULL,
    ALTER COLUMN header_values DROP NOT NULL,
    ALTER COLUMN value DROP NOT NULL;

-- What may be moved next, however many rows of years are behind it.
CREATE INDEX records_here ON records (writer, "partition", n) WHERE archive IS NULL;

-- Not validated: it would read the whole table, whose rows all have their bytes by now.
ALTER TABLE records ADD CONSTRAINT bytes_are_somewhere CHECK (
    archive IS NOT NULL OR (header_names IS NOT NULL AND header_values IS NOT NULL AND value IS NOT NULL)) NOT VALID;
