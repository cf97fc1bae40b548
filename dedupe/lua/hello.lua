#!lua flags=allow-oom
-- The first command of every connection: raises the session, so that copies of calls from older connections are refused from now on,
-- and makes the incarnation known here (its w: and, where claims are complete, its number).
--
-- It also rotates a store that is open. It is allowed when memory is full, where every claim is refused: so a full store gets room
-- again when its claims have grown old, and not only when somebody claims.
--
-- And it notices when keys were evicted since the claims here were begun. Nobody knows which, so no claim is believed any more: all are
-- deleted (which makes room for the join, where memory is full), the store is not open, and the next join begins with nothing, also if
-- somebody restarts or copies the server before that.
--
-- ARGV[9]  caller's clock in us
-- Replies: {'replica'}, {'wrong_log', log}, {'wrong_identity', hash}, {'zombie'}, {'stale'}
--          {'hello', replication id, open (1 or 0), this writer joined (1 or 0), incarnation was unknown (1 or 0), horizon, branch or ''}
--@include context.lua
--@include numbers.lua
--@include generations.lua

local function forget_if_keys_were_evicted(replid)
  local open, join = redis.call('HGET', open_key, 'replid'), redis.call('HMGET', join_key, 'replid', 'evicted')
  if open ~= replid and join[1] ~= replid then
    return -- what is here was made in another server's life: the join decides
  end
  local evicted, before = evicted_keys(), tonumber(join[2]) or 0
  if join[1] ~= replid or evicted > before then -- without its join, a store that is open has lost a key
    redis.call('HDEL', open_key, 'replid')
    redis.call('HDEL', join_key, 'replid')
    each('claims:*', 'UNLINK')
  elseif evicted < before then -- the count was reset
    redis.call('HSET', join_key, 'evicted', evicted)
  end
end

local replid = replication_id()
local elsewhere = belongs_elsewhere(replid)
if elsewhere then
  return elsewhere
end
forget_if_keys_were_evicted(replid)
local open = redis.call('HMGET', open_key, 'replid', 'era', 'branch')
local is_open = open[1] == replid and 1 or 0
local refusal, _, _, number = admit(open[2])
if refusal and refusal[1] ~= 'rejoin' then
  return refusal
end
redis.call('HSET', w_key, 'writer', writer, 'session', session)
redis.call('HSETNX', w_key, 'mark', '0')
if is_open == 1 then
  intern(open[2])
  rotate(tonumber(ARGV[9]))
end
local horizon = tonumber(redis.call('GET', namespace .. 'horizon')) or 0
local joined = redis.call('SISMEMBER', namespace .. 'joined:' .. replid, writer)
return {'hello', replid, is_open, joined, number and 0 or 1, horizon, is_open == 1 and open[3] or ''}
