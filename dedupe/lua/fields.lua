-- Included by both layouts of claims: many fields of a hash at once. unpack() of ~8000 values fails, so more go in pieces.

local CHUNK = 3500

-- The content of each field, false where there is none.
local function read_fields(key, names)
  if #names <= CHUNK then
    return #names > 0 and redis.call('HMGET', key, unpack(names)) or {}
  end
  local found = {}
  for first = 1, #names, CHUNK do
    local part = redis.call('HMGET', key, unpack(names, first, math.min(first + CHUNK - 1, #names)))
    for i = 1, #part do
      found[first + i - 1] = part[i]
    end
  end
  return found
end

-- pairs_: name, content, name, content …
local function write_fields(key, pairs_)
  for first = 1, #pairs_, 2 * CHUNK do
    redis.call('HSET', key, unpack(pairs_, first, math.min(first + 2 * CHUNK - 1, #pairs_)))
  end
end
