-- Included by every script: what it is told first, the names of the keys, and the few questions that several scripts ask.
--
-- ARGV[1..8], the same for every script of a connection:
--   namespace, writer (hex), incarnation (hex), session, log, identity hash, length of a generation in us, lifetime of a claim in us
--
-- Keys, all below the namespace; none has a TTL:
--   open               hash: replid = the replication id under which claims are complete; log, identity = whom they belong to; era, branch
--   join               hash: replid, log, identity, era and branch (random) of the join under way, or of the last one; faster: whether it
--                      keeps what it found, found: the branch of that; evicted: how many keys this server had evicted when the claims
--                      here were begun
--   joined:{replid}    set of the writers that have claimed everything again into this Redis
--   gen, low, horizon  current generation, lowest live generation, time at or below which nothing is ever claimed again
--   newest             hash: generation -> newest event time claimed in it; only generations with claims are in it
--   tenants:{g}        set of the tenants with claims in generation g
--   claims:{g}:{t}     hash of the claims; each is 12 bytes of digest, and 12 bytes of value: 4 bytes incarnation number, 4 bytes call (big
--                      endian), 4 bytes fingerprint. How they lie in it: claims_hashed.lua or claims_packed.lua, one for the whole store
--   incarnations       hash: number -> incarnation, for the tags of the claims, and as old as they
--   w:{incarnation}    hash: writer, session, mark, executions, closed (the last call; absent while it is open), base (the call up to
--                      which it has claimed its journal here), and number, which holds only in the era it was given in
--   writer:{id}        the last incarnation opened
--
-- Times are microseconds since 1970, so Lua's numbers hold them exactly (below 2^53). As arguments of redis.call they keep all digits; ..
-- writes only 14 digits, which is enough for generations alone (a generation lasts at least a second).
-- The keys depend on what the scripts find, so they cannot be declared: one primary, no cluster.
local namespace, writer, incarnation, session = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local log, identity, length_us, lifetime_us = ARGV[5], ARGV[6], tonumber(ARGV[7]), tonumber(ARGV[8])
local w_key, open_key, join_key = namespace .. 'w:' .. incarnation, namespace .. 'open', namespace .. 'join'

-- The server's own replication id; nil in a replica, which shows its primary's: a writable replica must not pass for a primary.
local function replication_id()
  local info = redis.call('INFO', 'replication')
  return string.find(info, 'role:master', 1, true) and string.match(info, 'master_replid:(%w+)')
end

-- How many keys this server has evicted since it started, or since somebody reset the count.
local function evicted_keys()
  return tonumber(string.match(redis.call('INFO', 'stats'), 'evicted_keys:(%d+)')) or 0
end

-- Step 2: may this incarnation speak on this connection? A refusal or nil; its mark, its executions, its number in this era or nil.
local function admit(era)
  local w = redis.call('HMGET', w_key, 'session', 'closed', 'mark', 'executions', 'number', 'era')
  if w[2] then
    return {'zombie'}
  end
  if not w[1] then
    return {'rejoin'}
  end
  if tonumber(w[1]) > session then
    return {'stale'}
  end
  return nil, tonumber(w[3]) or 0, tonumber(w[4]) or 0, w[6] == era and tonumber(w[5]) or nil
end

-- Is this a replica, or does the store belong to another log or (under this replication id) to another kind of identity? A refusal or nil.
local function belongs_elsewhere(replid)
  if not replid then
    return {'replica'}
  end
  for _, key in ipairs({open_key, join_key}) do
    local owner = redis.call('HMGET', key, 'replid', 'log', 'identity')
    if owner[2] and owner[2] ~= log then
      return {'wrong_log', owner[2]}
    end
    if owner[1] == replid and owner[3] ~= identity then
      return {'wrong_identity', owner[3]}
    end
  end
  return nil
end

-- Is the join that began with this era still the one under way here?
local function joining(replid, era)
  local join = redis.call('HMGET', join_key, 'replid', 'era')
  return join[1] == replid and join[2] == era
end

-- A command for every key of this pattern, by looking through the keyspace.
local function each(pattern, command, ...)
  local cursor = '0'
  repeat
    local found = redis.call('SCAN', cursor, 'MATCH', namespace .. pattern, 'COUNT', 1000)
    cursor = found[1]
    for _, key in ipairs(found[2]) do
      redis.call(command, key, ...)
    end
  until cursor == '0'
end

local function raise_horizon(horizon_us)
  if horizon_us > (tonumber(redis.call('GET', namespace .. 'horizon')) or 0) then
    redis.call('SET', namespace .. 'horizon', horizon_us)
  end
end
