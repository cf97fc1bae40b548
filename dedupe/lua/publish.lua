#!lua
-- Publishes all closed incarnations of a journal with their last calls, then this incarnation as the writer's last one: compare-and-set,
-- in one step with the check that the journal is not an old copy. Nothing is written unless everything fits:
--   * the incarnation that the store names for this writer occurs in the journal;
--   * no incarnation has a mark here above its last call in the journal, and none was closed here at another call;
--   * the store names none although claims are complete here: only right for a journal that never claimed.
--
-- ARGV[9]    mark: the highest call of this incarnation known to be on disk
-- ARGV[10..] per closed incarnation: id (hex), last call
-- Replies: {'rejoin'}, {'zombie'}, {'stale'}
--          {'stale_journal', incarnation, what}   what: 'unknown', 'mark', 'closed', 'missing'
--          {'published'}
--@include context.lua

local refusal, known_mark = admit()
if refusal then
  return refusal
end
local mark = tonumber(ARGV[9])
local lasts = {[incarnation] = mark}
if known_mark > mark then
  return {'stale_journal', incarnation, 'mark'}
end
local claimed = false
for at = 10, #ARGV, 2 do
  local id, last = ARGV[at], tonumber(ARGV[at + 1])
  lasts[id] = last
  claimed = claimed or last > 0
  local w = redis.call('HMGET', namespace .. 'w:' .. id, 'mark', 'closed')
  if w[1] and tonumber(w[1]) > last then
    return {'stale_journal', id, 'mark'}
  end
  if w[2] and tonumber(w[2]) ~= last then
    return {'stale_journal', id, 'closed'}
  end
end
local named = redis.call('GET', namespace .. 'writer:' .. writer)
if named and not lasts[named] then
  return {'stale_journal', named, 'unknown'}
end
if not named and claimed and redis.call('HGET', open_key, 'replid') == replication_id() then
  return {'stale_journal', incarnation, 'missing'}
end
for at = 10, #ARGV, 2 do
  redis.call('HSET', namespace .. 'w:' .. ARGV[at], 'writer', writer, 'closed', ARGV[at + 1])
end
redis.call('SET', namespace .. 'writer:' .. writer, incarnation)
return {'published'}
