-- Included by the scripts that touch claims: how generations come and go (step 4).
--@include claims.lua

local newest_key = namespace .. 'newest'

local function claims_key(generation, tenant)
  return namespace .. 'claims:' .. generation .. ':' .. tenant
end

local function drop(generation)
  local tenants = namespace .. 'tenants:' .. generation
  for _, tenant in ipairs(redis.call('SMEMBERS', tenants)) do
    redis.call('UNLINK', claims_key(generation, tenant))
  end
  redis.call('UNLINK', tenants)
  redis.call('HDEL', newest_key, generation)
end

-- Drops from the lowest on what is older than `limit_us`; returns the lowest generation that stays and the horizon.
local function drop_old(gen, horizon, limit_us)
  local stored, newest, older = redis.call('HGETALL', newest_key), {}, {}
  for i = 1, #stored, 2 do
    local generation = tonumber(stored[i])
    if generation < gen then
      older[#older + 1] = generation
      newest[generation] = tonumber(stored[i + 1])
    end
  end
  table.sort(older)
  for _, generation in ipairs(older) do
    if newest[generation] >= limit_us then
      return generation, horizon
    end
    horizon = math.max(horizon, newest[generation])
    drop(generation)
  end
  return gen, horizon
end

-- The lesser of both clocks decides. Returns gen, low and the horizon, all stored. An empty generation counts as old.
local function rotate(clock_us)
  local time = redis.call('TIME')
  local now_us = math.min(time[1] * 1000000 + time[2], clock_us)
  local stored = redis.call('MGET', namespace .. 'gen', namespace .. 'low', namespace .. 'horizon')
  local gen, low, horizon = tonumber(stored[1]), tonumber(stored[2]), tonumber(stored[3]) or 0
  local known_gen, known_low, known_horizon = gen, low, horizon
  local by_clock = math.floor(now_us / length_us)
  if not gen then
    gen, low = by_clock, by_clock
  end
  gen, low = math.max(gen, by_clock), low or gen
  if low < gen then
    local limit_us = now_us - lifetime_us
    if (tonumber(redis.call('HGET', newest_key, low)) or 0) < limit_us then
      low, horizon = drop_old(gen, horizon, limit_us)
    end
  end
  if gen ~= known_gen then
    redis.call('SET', namespace .. 'gen', gen)
  end
  if low ~= known_low then
    redis.call('SET', namespace .. 'low', low)
  end
  if horizon ~= known_horizon then
    redis.call('SET', namespace .. 'horizon', horizon)
  end
  return gen, low, horizon
end

local function raise_newest(generation, time_us)
  local known = tonumber(redis.call('HGET', newest_key, generation))
  if not known or known < time_us then
    redis.call('HSET', newest_key, generation, time_us)
  end
end

-- From `taken` on as for `put` of the layout.
local function write(generation, tenant, key, is_new, taken, at, hash, before)
  if is_new then
    redis.call('SADD', namespace .. 'tenants:' .. generation, tenant)
  end
  put(key, taken, at, hash, before)
end
