-- Included by the scripts that take sections: digests of 12 bytes, then as many fingerprints of 4. CHUNK is that of fields.lua.

-- The strings of `size` bytes from `first` on. One struct.unpack for many of them costs a fraction of a string.sub for each.
local function cut(blob, first, size, count)
  local found = {}
  for done = 0, count - 1, CHUNK do
    local many = math.min(CHUNK, count - done)
    local piece = {struct.unpack(string.rep('c' .. size, many), blob, first + size * done)}
    piece[many + 1] = nil  -- where it stopped reading
    if many == count then
      return piece
    end
    for i = 1, many do
      found[done + i] = piece[i]
    end
  end
  return found
end

local function digests_of(blob)
  return cut(blob, 1, 12, #blob / 16)
end

local function fingerprints_of(blob)
  return cut(blob, #blob / 16 * 12 + 1, 4, #blob / 16)
end
