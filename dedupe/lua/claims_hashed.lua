-- Included by the scripts that touch claims: the layout `hashed`. A claim is a field of its hash: digest -> value.
-- claims_packed.lua has the same two functions.
--@include fields.lua

-- The value of each digest, false where there is none.
local lookup = read_fields

-- taken: digest, value, digest, value …; each value becomes that of its digest, whatever was there.
local put = write_fields
