#!lua flags=allow-oom
-- The journal of this writer is lost, or about to be declared so: what is known of its last incarnation, and closing it where its
-- record ends, at the higher of its mark and of what the counter log has of it. Claims of later calls are void from then on.
--
-- The incarnation that the counter log names is closed too, should the store not know it (it lost the end of its data): else claims
-- that carry it would be pending for ever.
--
-- ARGV[9]   1: close it; 0: only tell
-- ARGV[10]  incarnation (hex) of the last call that a flush in the counter log covered; '' when there is none
-- ARGV[11]  that call
-- Replies: {'replica'}, {'wrong_log', log}, {'wrong_identity', hash}
--          {'buried', last incarnation (hex) or '', its mark, the call it was closed at before or -1, the call it ends with}
--@include context.lua

local elsewhere = belongs_elsewhere(replication_id())
if elsewhere then
  return elsewhere
end
local through, through_call = ARGV[10], tonumber(ARGV[11])
local named = redis.call('GET', namespace .. 'writer:' .. writer) or ''
local mark, closed, last = 0, -1, 0
if named ~= '' then
  local w = redis.call('HMGET', namespace .. 'w:' .. named, 'mark', 'closed')
  mark, closed = tonumber(w[1]) or 0, tonumber(w[2]) or -1
  last = closed >= 0 and closed or (through == named and math.max(mark, through_call) or mark)
end
if ARGV[9] == '1' then
  if named ~= '' and closed < 0 then
    redis.call('HSET', namespace .. 'w:' .. named, 'writer', writer, 'closed', last)
  end
  if through ~= '' and through ~= named and not redis.call('HGET', namespace .. 'w:' .. through, 'closed') then
    redis.call('HSET', namespace .. 'w:' .. through, 'writer', writer, 'closed', through_call)
  end
end
return {'buried', named, mark, closed, last}
