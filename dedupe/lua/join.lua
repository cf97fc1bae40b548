#!lua
-- A writer begins to claim its whole journal again into this Redis. The first to come deletes every claim it finds, the numbers in
-- their tags and the newest times, and names the join with its era; the others learn the era. Whoever carries another era (Redis lost
-- its data in between) starts over. gen, low, horizon, w: and writer: stay: they are right whenever they are there, but for what w: says
-- of the claims that were here.
--
-- It looks through the keyspace, because after a failover the sets that name the claims may be among what was lost.
--
-- The faster way: what is here is a Redis as it was at some moment when claims were complete (a promoted replica, a restart from disk): it
-- lacks an end and nothing else. Then everything stays, the era too, for numbers in tags hold; each joiner is told how many executions of
-- its incarnations are in here, and claims again only what its journal has beyond them. Counts compare within a branch alone, which begins
-- with each join and gets the name that its first joiner brought: what was executed in another Redis that came from the same past is
-- not in here, however low its number. A Redis that was taken in the middle of a join, or
-- is empty, does not say that its claims were complete: `open` names no replication id then, or not that of the last join. Nor is it
-- believed when its keys do not fit together, as when somebody deleted some, nor when the server has ever evicted a key.
--
-- A store may be open and yet be an old primary that was left at a failover and lives on: it knows nothing of what was claimed elsewhere
-- since. Who last entered another branch says so, and then everybody joins again. Nor does the faster way fit what is of another branch: a
-- call that was executed here, and again elsewhere with another result, has left tags here that its record does not bear out.
--
-- ARGV[9]    era and branch, random, used if this is the first to join
-- ARGV[10]   the branch that was entered last, by this writer or, where it is new, by others; '' if none
-- ARGV[11..] incarnations (hex) of this journal, oldest first
-- Replies: {'replica'}, {'wrong_log', log}, {'wrong_identity', hash}, {'rejoin'}, {'zombie'}, {'stale'}
--          {'joining', era, first (1 or 0), branch, faster (1 or 0)}, in the faster way followed by the branch of what was found, and per
--            incarnation by its executions there, and the call up to which it had claimed its whole journal, or -1
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

local function fits_together()
  if redis.call('EXISTS', namespace .. 'incarnations') == 0 then
    return false -- numbers would be given out a second time, and the claims of one writer be taken for those of another
  end
  local newest = redis.call('HKEYS', namespace .. 'newest')
  if #newest > 0 and redis.call('EXISTS', namespace .. 'gen', namespace .. 'low') < 2 then
    return false
  end
  local named, found = 0, 0
  for _, generation in ipairs(newest) do
    local tenants = redis.call('SMEMBERS', namespace .. 'tenants:' .. generation)
    for _, tenant in ipairs(tenants) do
      if redis.call('EXISTS', namespace .. 'claims:' .. generation .. ':' .. tenant) == 0 then
        return false
      end
    end
    if #tenants == 0 then
      return false
    end
    named = named + #tenants
  end
  local cursor = '0'
  repeat
    local page = redis.call('SCAN', cursor, 'MATCH', namespace .. 'claims:*', 'COUNT', 1000)
    cursor, found = page[1], found + #page[2]
  until cursor == '0'
  return found == named
end

local function faster(era, first, branch, found)
  local reply = {'joining', era, first, branch, 1, found}
  for at = 11, #ARGV do
    local w = redis.call('HMGET', namespace .. 'w:' .. ARGV[at], 'executions', 'base')
    reply[#reply + 1] = tonumber(w[1]) or 0
    reply[#reply + 1] = tonumber(w[2]) or -1
  end
  return reply
end

local join = redis.call('HMGET', join_key, 'replid', 'era', 'branch', 'faster', 'found')
local open = redis.call('HMGET', open_key, 'replid', 'branch', 'log', 'identity')
local as_it_was_left = ARGV[10] == '' or open[2] == ARGV[10]
-- Whoever was in a third branch since this join began has been where calls were executed that this store knows otherwise.
local still_faster = ARGV[10] == '' or ARGV[10] == join[3] or ARGV[10] == join[5]
if join[1] == replid and (open[1] ~= replid or as_it_was_left) and (join[4] ~= '1' or still_faster) then
  redis.call('SREM', namespace .. 'joined:' .. replid, writer) -- it may have claimed elsewhere since: what it claims again now is waited for
  intern(join[2])
  return join[4] == '1' and faster(join[2], 0, join[3], join[5]) or {'joining', join[2], 0, join[3], 0}
end
redis.call('HDEL', open_key, 'replid')
local was_complete = open[1] and open[1] == join[1] and open[2] == join[3] and open[3] == log and open[4] == identity
if as_it_was_left and was_complete and evicted_keys() == 0 and fits_together() then
  each('joined:*', 'UNLINK')
  redis.call('HSET', join_key, 'replid', replid, 'branch', ARGV[9], 'faster', 1, 'found', open[2], 'evicted', 0)
  intern(join[2])
  return faster(join[2], 1, ARGV[9], open[2])
end
each('claims:*', 'UNLINK')
each('tenants:*', 'UNLINK')
each('joined:*', 'UNLINK')
each('w:*', 'HDEL', 'executions', 'base')
redis.call('UNLINK', namespace .. 'newest', namespace .. 'incarnations')
redis.call('HSET', join_key, 'replid', replid, 'log', log, 'identity', identity, 'era', ARGV[9], 'branch', ARGV[9], 'faster', 0,
  'evicted', evicted_keys())
intern(ARGV[9])
return {'joining', ARGV[9], 1, ARGV[9], 0}
