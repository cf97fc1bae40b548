-- Included by the scripts that touch claims: the layout `hashed`. A claim is a field of its hash: digest -> value.
-- claims_packed.lua has the same two functions.

-- unpack() of ~8000 values fails: commands of more go in pieces.
local CHUNK = 3500

-- The value of each digest, false or nil where there is none.
local function lookup(key, digests)
  if #digests <= CHUNK then
    return redis.call('HMGET', key, unpack(digests))
  end
  local values = {}
  for first = 1, #digests, CHUNK do
    local part = redis.call('HMGET', key, unpack(digests, first, math.min(first + CHUNK - 1, #digests)))
    for i = 1, #part do
      values[first + i - 1] = part[i]
    end
  end
  return values
end

-- values[j] becomes the value of digests[at[j]], whatever was there.
local function put(key, digests, at, values)
  for first = 1, #at, CHUNK do
    local pairs_ = {}
    for j = first, math.min(first + CHUNK - 1, #at) do
      pairs_[#pairs_ + 1] = digests[at[j]]
      pairs_[#pairs_ + 1] = values[j]
    end
    redis.call('HSET', key, unpack(pairs_))
  end
end
