-- Included by the scripts that touch claims: the layout `packed`. A claim is an entry of 24 bytes, digest and value, in a group; a group is
-- a field of the hash. So what Redis spends on a field is spent once for some FULL claims. claims_hashed.lua has the same two functions.
--
-- Which group: linear hashing (Litwin, 1980), by the first 4 bytes of a digest. Groups are numbered from 0; their number rises one by one
-- with the claims, and each new group takes its half of one old group. So a call never moves many more claims than it writes.
--
-- FULL is small because this Lua hashes every byte of every string that a script touches.
--
-- Fields of the hash: 4 bytes, the number of a group -> its entries; 'claims', how many there are; 'groups', how many.

local ENTRY, DIGEST, FULL = 24, 12, 6
local CHUNK = 3500 -- unpack() of ~8000 values fails: commands of more go in pieces.
local find, sub, pack4, unpack4 = string.find, string.sub, struct.pack, struct.unpack

-- What is in a hash: {claims, groups, level = the greatest power of two up to groups, texts = {group -> entries, of those read}}
local function hash_at(key)
  local stored = redis.call('HMGET', key, 'claims', 'groups')
  local groups, level = tonumber(stored[2]) or 1, 1
  while 2 * level <= groups do
    level = 2 * level
  end
  return {claims = tonumber(stored[1]) or 0, groups = groups, level = level, texts = {}, fields = {}}
end

local function home_of(hash, digest)
  local home = unpack4('>I4', digest) % (2 * hash.level)
  return home < hash.groups and home or home - hash.level
end

local function field(hash, group)
  local name = hash.fields[group]
  if not name then
    name = pack4('>I4', group)
    hash.fields[group] = name
  end
  return name
end

-- Reads groups, those that are not there as ''.
local function read(key, hash, groups)
  local texts = hash.texts
  for first = 1, #groups, CHUNK do
    local names = {}
    for i = first, math.min(first + CHUNK - 1, #groups) do
      names[#names + 1] = field(hash, groups[i])
    end
    local found = redis.call('HMGET', key, unpack(names))
    for i = 1, #found do
      texts[groups[first + i - 1]] = found[i] or ''
    end
  end
end

-- Where the entry of a digest begins, nil if it is not there. Bytes that look like a digest may lie across entries.
local function entry_of(text, digest)
  local at = find(text, digest, 1, true)
  while at and at % ENTRY ~= 1 do
    at = find(text, digest, at + 1, true)
  end
  return at
end

-- The value of each digest, nil where there is none; and what `put` of the same digests needs to know.
local function lookup(key, digests)
  local hash, homes, entries, values = hash_at(key), {}, {}, {}
  local texts, wanted = hash.texts, {}
  hash.homes, hash.entries = homes, entries
  for i = 1, #digests do
    local home = home_of(hash, digests[i])
    homes[i] = home
    if not texts[home] then
      texts[home] = ''
      wanted[#wanted + 1] = home
    end
  end
  if hash.claims == 0 then
    return values, hash
  end
  read(key, hash, wanted)
  for i = 1, #digests do
    local text = texts[homes[i]]
    local at = entry_of(text, digests[i])
    if at then
      entries[i], values[i] = at, sub(text, at + DIGEST, at + ENTRY - 1)
    end
  end
  return values, hash
end

-- From now on there are `groups`: each new one takes those of an old one's entries that belong to it.
local function grow(key, hash, groups, changed)
  local texts, level, halved, unread = hash.texts, hash.level, {}, {}
  for group = hash.groups, groups - 1 do
    level = group < 2 * level and level or 2 * level
    local old = group - level
    halved[#halved + 1] = {old, group, 2 * level}
    if old < hash.groups and not texts[old] then
      texts[old] = ''
      unread[#unread + 1] = old
    end
  end
  if hash.claims > 0 then
    read(key, hash, unread)
  end
  for _, half in ipairs(halved) do
    local old, group, modulus = half[1], half[2], half[3]
    local text, stay, move = texts[old] or '', {}, {}
    for at = 1, #text, ENTRY do
      local to = unpack4('>I4', text, at) % modulus == group and move or stay
      to[#to + 1] = sub(text, at, at + ENTRY - 1)
    end
    if #move > 0 then
      texts[old], texts[group] = table.concat(stay), table.concat(move)
      changed[old], changed[group] = true, true
    end
  end
  hash.groups, hash.level = groups, level
end

-- values[j] becomes the value of digests[at[j]], whatever was there. A new hash begins with the groups that `before`, the same tenant's last
-- one, needed in the end: then nothing is moved while it fills as the last one did.
local function put(key, digests, at, values, hash, before)
  local texts, homes, changed, added = hash.texts, hash.homes, {}, {}
  for j = 1, #at do
    local entry, home = hash.entries[at[j]], homes[at[j]]
    if entry then
      local text = texts[home]
      texts[home] = sub(text, 1, entry + DIGEST - 1) .. values[j] .. sub(text, entry + ENTRY)
      changed[home] = true
    else
      added[#added + 1] = j
    end
  end
  local claims, known_groups = hash.claims + #added, hash.groups
  local expected = hash.claims == 0 and before and before.claims or 0
  local groups = math.floor(math.max(claims, expected) / FULL)
  if groups > known_groups then
    grow(key, hash, groups, changed)
  end
  local ends = {}
  for i = 1, #added do
    local j = added[i]
    local digest = digests[at[j]]
    local home = hash.groups == known_groups and homes[at[j]] or home_of(hash, digest)
    local text = ends[home] or texts[home] or ''
    ends[home] = text .. digest .. values[j]
    changed[home] = true
  end
  local pairs_ = {'claims', claims, 'groups', hash.groups}
  for group in pairs(changed) do
    pairs_[#pairs_ + 1] = field(hash, group)
    pairs_[#pairs_ + 1] = ends[group] or texts[group]
    if #pairs_ >= 2 * CHUNK then
      redis.call('HSET', key, unpack(pairs_))
      pairs_ = {}
    end
  end
  if #pairs_ > 0 then
    redis.call('HSET', key, unpack(pairs_))
  end
end
