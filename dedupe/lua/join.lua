#!lua
-- A writer begins to claim its whole journal again into this Redis. The first to come deletes every claim it finds, the numbers in
-- their tags and the newest times, and names the join with its era; the others learn the era. Whoever carries another era (Redis lost
-- its data in between) starts over. gen, low, horizon, w: and writer: stay: they are right whenever they are there.
--
-- It looks through the keyspace, because after a failover the sets that name the claims may be among what was lost.
--
-- ARGV[9]  era, random, used if this is the first to join
-- Replies: {'replica'}, {'wrong_log', log}, {'wrong_identity', hash}, {'rejoin'}, {'zombie'}, {'stale'}
--          {'joining', era, first (1 or 0)}
--@include context.lua
--@include numbers.lua

local replid = replication_id()
local elsewhere = belongs_elsewhere(replid)
if elsewhere then
  return elsewhere
end
local refusal = admit()
if refusal then
  return refusal
end

local function wipe(pattern)
  local cursor = '0'
  repeat
    local found = redis.call('SCAN', cursor, 'MATCH', namespace .. pattern, 'COUNT', 1000)
    cursor = found[1]
    for _, key in ipairs(found[2]) do
      redis.call('UNLINK', key)
    end
  until cursor == '0'
end

local join = redis.call('HMGET', join_key, 'replid', 'era')
if join[1] == replid then
  intern(join[2])
  return {'joining', join[2], 0}
end
redis.call('HDEL', open_key, 'replid')
wipe('claims:*')
wipe('tenants:*')
wipe('joined:*')
redis.call('UNLINK', namespace .. 'newest', namespace .. 'incarnations')
redis.call('HSET', join_key, 'replid', replid, 'log', log, 'identity', identity, 'era', ARGV[9])
intern(ARGV[9])
return {'joining', ARGV[9], 1}
