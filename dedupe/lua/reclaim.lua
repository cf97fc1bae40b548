#!lua
-- Claims digests of this writer's journal again, whatever tag is there: as call 0 of this incarnation, which is at or below every mark,
-- so everybody finds a duplicate. Each goes into the live generation nearest to the one that its record names, and raises its newest.
--
-- ARGV[9]    era of the join
-- ARGV[10]   caller's clock in us
-- ARGV[11..] per section: tenant, '>I8I8' generation of the records and their newest event time, digests followed by fingerprints
-- Replies: {'rebuild'}  this join is over: start again   {'rejoin'}, {'zombie'}, {'stale'}
--          {'reclaimed', generation, horizon}
--@include context.lua
--@include generations.lua
--@include sections.lua

if not joining(replication_id(), ARGV[9]) then
  return {'rebuild'}
end
local refusal, _, _, number = admit(ARGV[9])
if refusal then
  return refusal
end
if not number then
  return {'rejoin'}
end
local gen, low, horizon = rotate(tonumber(ARGV[10]))
local tag = struct.pack('>I4I4', number, 0)
for at = 11, #ARGV, 3 do
  local tenant, blob = ARGV[at], ARGV[at + 2]
  local generation, newest_us = struct.unpack('>I8I8', ARGV[at + 1])
  generation = math.max(low, math.min(gen, generation))
  local digests, fingerprints, again = digests_of(blob), fingerprints_of(blob), {}
  for i = 1, #digests do
    again[2 * i - 1], again[2 * i] = digests[i], tag .. fingerprints[i]
  end
  if #digests > 0 then
    local key = claims_key(generation, tenant)
    write(generation, tenant, key, redis.call('EXISTS', key) == 0, again)
    raise_newest(generation, newest_us)
  end
end
return {'reclaimed', gen, horizon}
