-- Included by the scripts that make an incarnation known: the number that tags carry for it, given out when it is asked for first in an era.
local function intern(era)
  local w = redis.call('HMGET', w_key, 'number', 'era')
  if w[1] and w[2] == era then
    return
  end
  local number = redis.call('HLEN', namespace .. 'incarnations') + 1
  redis.call('HSET', namespace .. 'incarnations', number, incarnation)
  redis.call('HSET', w_key, 'number', number, 'era', era)
end
