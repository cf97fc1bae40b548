#!lua
-- The claim script: PROTOCOL's five steps, in its order. One call of one incarnation; atomic, and it either executes or changes nothing
-- but the mark and what the clocks made due.
--
-- ARGV[9]    '>I4I4I8I8I8': number of the call (0: only publish the mark), mark, caller's clock, least and greatest event time in us;
--            then for each copy of a digest 8 bytes: the place of its first among all digests, from 0, and its own fingerprint
-- ARGV[10..] per section: tenant, then 12 bytes of digest an event followed by 4 bytes of fingerprint an event
--
-- Replies: {'rebuild'}  claims are not complete in this Redis
--          {'rejoin'}   this incarnation is not known here   {'zombie'}  it is closed   {'stale'}  a newer connection has spoken
--          {'marked'}   the mark was raised (number 0)
--          {'late', horizon}   an event lies at or below the horizon: nothing was claimed
--          {'verdicts', generation, executions, horizon, codes}   codes: one of g d p c an event, then a copy; '' when all are granted
--@include context.lua
--@include generations.lua
--@include sections.lua

local number, mark, clock_us, oldest_us, newest_us = struct.unpack('>I4I4I8I8I8', ARGV[9])
local copies = string.sub(ARGV[9], 33)

-- Step 1: is this the Redis in which claims are complete?
local open = redis.call('HMGET', open_key, 'replid', 'identity', 'era')
if open[2] ~= identity or open[1] ~= replication_id() then
  return {'rebuild'}
end

-- Step 2: may I speak?
local refusal, known_mark, executions, my_number = admit(open[3])
if refusal then
  return refusal
end
if not my_number then
  return {'rejoin'}
end

-- Step 3: marks only rise. Every call but a bare mark is an execution, also one that step 4 refuses.
mark = math.max(mark, known_mark)
if number == 0 then
  redis.call('HSET', w_key, 'mark', mark)
  return {'marked'}
end
executions = executions + 1
redis.call('HSET', w_key, 'mark', mark, 'executions', executions)

-- Step 4: rotate, then refuse what lies at or below the horizon.
local gen, low, horizon = rotate(clock_us)
if #ARGV > 9 and oldest_us <= horizon then
  return {'late', horizon}
end

-- Step 5: the verdicts.
local my_tag = struct.pack('>I4I4', my_number, number)

-- Generations below the current one that have claims, newest first.
local older = {}
if low < gen then
  for _, field in ipairs(redis.call('HKEYS', newest_key)) do
    local generation = tonumber(field)
    if generation >= low and generation < gen then
      older[#older + 1] = generation
    end
  end
  table.sort(older, function(one, other) return one > other end)
end

-- The digests without a value, and where they stand among all; all of them and nil where none has one, as in most calls.
local function unfound(values, digests)
  local first = 1
  while first <= #digests and not values[first] do
    first = first + 1
  end
  if first > #digests then
    return digests, nil
  end
  local asked, at, count = {}, {}, 0
  for i = 1, #digests do
    if not values[i] then
      count = count + 1
      asked[count], at[count] = digests[i], i
    end
  end
  return asked, at
end

-- The first claim found decides: newest generation first. Returns also what `put` wants to know.
local function find_claims(key, tenant, digests)
  local values, hash = lookup(key, digests)
  local before
  for _, generation in ipairs(older) do
    local older_key = claims_key(generation, tenant)
    if redis.call('EXISTS', older_key) == 1 then
      local asked, at = unfound(values, digests)
      if #asked == 0 then
        break
      end
      local more, older_hash = lookup(older_key, asked)
      before = before or older_hash
      if at then
        for j = 1, #at do
          values[at[j]] = more[j]
        end
      else
        values = more
      end
    end
  end
  return values, hash, before
end

-- Mark and last call of the other incarnations met in this call. Mark nil: its w: is missing.
local others = {}
local function other_incarnation(other)
  local state = others[other]
  if not state then
    state = {}
    local id = redis.call('HGET', namespace .. 'incarnations', other)
    if id then
      local w = redis.call('HMGET', namespace .. 'w:' .. id, 'mark', 'closed')
      state.closed = tonumber(w[2])
      state.mark = tonumber(w[1]) or (state.closed and 0)
    end
    others[other] = state
  end
  return state
end

-- The table of verdicts for a claim that was found; 'v': void, to be taken over.
local function verdict(value)
  local other, call = struct.unpack('>I4I4', value)
  if other == my_number then
    if call == number then
      return 'g'
    end
    return call < number and 'd' or 'p'
  end
  local state = other_incarnation(other)
  if not state.mark then
    return 'p'
  end
  if call <= state.mark then
    return 'd'
  end
  if state.closed then
    return call <= state.closed and 'd' or 'v'
  end
  return 'p'
end

-- A duplicate of the same shape with other content is a conflict; of another shape it is only a duplicate.
local function differs(value, fingerprint)
  return string.sub(value, 9, 12) ~= fingerprint and string.sub(value, 9, 9) == string.sub(fingerprint, 1, 1)
end

-- By place among all digests, where there are copies: the value found or written.
local claimed = {}

local total, codes, any_granted = 0, nil, false
local function note(at, code)
  codes = codes or {}
  codes[at] = code
end

local function claim_section(tenant, blob)
  local digests, fingerprints = digests_of(blob), fingerprints_of(blob)
  local key = claims_key(gen, tenant)
  local is_new = redis.call('EXISTS', key) == 0
  local values, hash, before = find_claims(key, tenant, digests)
  local taken, at, count = {}, {}, 0
  for i = 1, #digests do
    local value, code, fingerprint = values[i], 'v', fingerprints[i]
    if value then
      code = verdict(value)
      if code == 'd' and differs(value, fingerprint) then
        code = 'c'
      end
    end
    if code == 'v' then
      count = count + 1
      at[count] = i
      value = my_tag .. fingerprint
      taken[2 * count - 1], taken[2 * count] = digests[i], value
    elseif code == 'g' then
      any_granted = true
    else
      note(total + i, code)
    end
    if copies ~= '' then
      claimed[total + i] = value
    end
  end
  if count > 0 then
    any_granted = true
    write(gen, tenant, key, is_new, taken, at, hash, before)
  end
  total = total + #digests
end

for at = 10, #ARGV, 2 do
  claim_section(ARGV[at], ARGV[at + 1])
end
if any_granted then
  raise_newest(gen, newest_us)
end
if codes or copies ~= '' then
  codes = codes or {}
  for i = 1, total do
    codes[i] = codes[i] or 'g'
  end
end

-- Each copy is a duplicate of what its first is a claim of by now, or a conflict with it; or as pending as its first.
for at = 1, #copies, 8 do
  local place, fingerprint = struct.unpack('>I4c4', copies, at)
  local of_first = codes[place + 1]
  codes[#codes + 1] = of_first == 'p' and 'p' or differs(claimed[place + 1], fingerprint) and 'c' or 'd'
end
return {'verdicts', gen, executions, horizon, codes and table.concat(codes) or ''}
