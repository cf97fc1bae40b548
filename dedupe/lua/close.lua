#!lua
-- This incarnation ends in order: everything up to its last call is on disk.
--
-- ARGV[9]  last call
-- Replies: {'rejoin'}, {'zombie'} (closed before, at another call), {'stale'}, {'closed'}
--@include context.lua

if redis.call('HGET', w_key, 'closed') == ARGV[9] then
  return {'closed'}
end
local refusal, known_mark = admit()
if refusal then
  return refusal
end
redis.call('HSET', w_key, 'mark', math.max(known_mark, tonumber(ARGV[9])), 'closed', ARGV[9])
return {'closed'}
