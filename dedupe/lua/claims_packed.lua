-- Included by the scripts that touch claims: the layout `packed`. A claim is an entry of 24 bytes, digest and value, in a group; a group is
-- a field of the hash. So what Redis spends on a field is spent once for some FULL claims. claims_hashed.lua has the same two functions.
--
-- Which group: linear hashing (Litwin, 1980), by the first 4 bytes of a digest. Groups are numbered from 0; their number rises one by one
-- with the claims, and each new group takes its half of one old group. So a call never moves many more claims than it writes.
--
-- FULL is small because this Lua hashes every byte of every string that a script touches.
--
-- Fields of the hash: 4 bytes, the number of a group -> its entries; 'claims', how many there are; 'groups', how many.

--@include fields.lua

local ENTRY, DIGEST, FULL = 24, 12, 12
local find, sub, pack4, unpack4 = string.find, string.sub, struct.pack, struct.unpack

-- What is in a hash: {claims, groups, level = the greatest power of two up to groups}
local function hash_at(key)
  local stored = redis.call('HMGET', key, 'claims', 'groups')
  local groups, level = tonumber(stored[2]) or 1, 1
  while 2 * level <= groups do
    level = 2 * level
  end
  return {claims = tonumber(stored[1]) or 0, groups = groups, level = level}
end

local function home_of(hash, digest)
  local home = unpack4('>I4', digest) % (2 * hash.level)
  return home < hash.groups and home or home - hash.level
end

-- Where the entry of a digest begins, nil if it is not there. Bytes that look like a digest may lie across entries.
local function entry_of(text, digest)
  local at = find(text, digest, 1, true)
  while at and at % ENTRY ~= 1 do
    at = find(text, digest, at + 1, true)
  end
  return at
end

-- The value of each digest, nil where there is none; and what `put` of the same digests needs to know. (Digests of one group read it twice:
-- rare where there are many groups, and where there are few it costs little.)
local function lookup(key, digests)
  local hash, homes, names, entries, values = hash_at(key), {}, {}, {}, {}
  for i = 1, #digests do
    local home = home_of(hash, digests[i])
    homes[i], names[i] = home, pack4('>I4', home)
  end
  hash.homes, hash.names, hash.entries, hash.texts = homes, names, entries, {}
  if hash.claims == 0 then
    return values, hash
  end
  local texts = read_fields(key, names)
  hash.texts = texts
  for i = 1, #digests do
    local text = texts[i]
    local at = text and entry_of(text, digests[i])
    if at then
      entries[i], values[i] = at, sub(text, at + DIGEST, at + ENTRY - 1)
    end
  end
  return values, hash
end

-- The groups that a `put` writes: names and texts, and where each group is in them.
local function group_in(writing, group, name, text)
  local at = writing.at[group]
  if not at then
    at = writing.count + 1
    writing.count, writing.at[group] = at, at
    writing.names[at], writing.texts[at] = name or pack4('>I4', group), text or ''
  end
  return at
end

-- From now on there are `groups`: each new one takes those of an old one's entries that belong to it.
local function grow(key, hash, groups, writing)
  local level, halved, unread, names = hash.level, {}, {}, {}
  for group = hash.groups, groups - 1 do
    level = group < 2 * level and level or 2 * level
    local old = group - level
    halved[#halved + 1] = {old, group, 2 * level}
    if hash.claims > 0 and old < hash.groups and not writing.at[old] then
      unread[#unread + 1], names[#names + 1] = old, pack4('>I4', old)
    end
  end
  local found = read_fields(key, names)
  for i = 1, #unread do
    group_in(writing, unread[i], names[i], found[i])
  end
  for _, half in ipairs(halved) do
    local at = writing.at[half[1]]
    local text, stay, move = at and writing.texts[at] or '', {}, {}
    for entry = 1, #text, ENTRY do
      local to = unpack4('>I4', text, entry) % half[3] == half[2] and move or stay
      to[#to + 1] = sub(text, entry, entry + ENTRY - 1)
    end
    if #move > 0 then
      writing.texts[at] = table.concat(stay)
      group_in(writing, half[2], nil, table.concat(move))
    end
  end
  hash.groups, hash.level = groups, level
end

-- taken: digest, value, digest, value …; each value becomes that of its digest, whatever was there. at: where each digest stands among those
-- of `lookup`; hash: what that returned. A new hash begins with the groups that `before`, the same tenant's last one, needed in the end:
-- then nothing is moved while it fills as the last one did. Whoever has not looked the digests up gives `taken` alone.
local function put(key, taken, at, hash, before)
  if not hash then
    local digests = {}
    at = {}
    for j = 1, #taken / 2 do
      digests[j], at[j] = taken[2 * j - 1], j
    end
    hash = select(2, lookup(key, digests))
  end
  local writing, added = {at = {}, names = {}, texts = {}, count = 0}, {}
  local texts, known_groups = writing.texts, hash.groups
  for j = 1, #at do
    local i = at[j]
    local to, entry = group_in(writing, hash.homes[i], hash.names[i], hash.texts[i]), hash.entries[i]
    if entry then
      texts[to] = sub(texts[to], 1, entry + DIGEST - 1) .. taken[2 * j] .. sub(texts[to], entry + ENTRY)
    else
      added[#added + 1] = j
    end
  end
  local expected = hash.claims == 0 and before and before.claims or 0
  hash.claims = hash.claims + #added
  local groups = math.floor(math.max(hash.claims, expected) / FULL)
  if groups > known_groups then
    grow(key, hash, groups, writing)
  end
  for n = 1, #added do
    local j = added[n]
    local digest = taken[2 * j - 1]
    local home = groups > known_groups and home_of(hash, digest) or hash.homes[at[j]]
    local to = writing.at[home] or group_in(writing, home)
    texts[to] = texts[to] .. digest .. taken[2 * j]
  end
  local fields = {'claims', hash.claims, 'groups', hash.groups}
  for to = 1, writing.count do
    fields[#fields + 1] = writing.names[to]
    fields[#fields + 1] = texts[to]
  end
  write_fields(key, fields)
end
