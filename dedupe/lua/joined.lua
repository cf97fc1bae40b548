#!lua
-- This writer has claimed everything again: publishes its mark and its horizon, adds it to `joined`; when that holds every member, the
-- dead ones included, claims are complete and the store is open. Sent again (with the members of the moment) to ask whether it is.
--
-- ARGV[9]    era of the join
-- ARGV[10]   mark
-- ARGV[11]   highest horizon of the journal and of the registry, us
-- ARGV[12]   how many members have entered another branch since: missing, though they may have joined here once
-- ARGV[13..] the other members (hex)
-- Replies: {'rebuild'}, {'rejoin'}, {'zombie'}, {'stale'}
--          {'joined', open (1 or 0), how many members are missing}
--@include context.lua

local replid = replication_id()
if not joining(replid, ARGV[9]) then
  return {'rebuild'}
end
local refusal, known_mark = admit()
if refusal then
  return refusal
end
if tonumber(ARGV[10]) > known_mark then
  redis.call('HSET', w_key, 'mark', ARGV[10])
end
redis.call('HSET', w_key, 'base', ARGV[10]) -- everything up to this call is in here: a later join need not claim it again
raise_horizon(tonumber(ARGV[11]))
local joined = namespace .. 'joined:' .. replid
redis.call('SADD', joined, writer)
local missing = tonumber(ARGV[12])
for at = 13, #ARGV do
  missing = missing + 1 - redis.call('SISMEMBER', joined, ARGV[at])
end
if missing == 0 then
  redis.call('HSET', open_key, 'replid', replid, 'log', log, 'identity', identity, 'era', ARGV[9],
    'branch', redis.call('HGET', join_key, 'branch'))
end
return {'joined', redis.call('HGET', open_key, 'replid') == replid and 1 or 0, missing}
