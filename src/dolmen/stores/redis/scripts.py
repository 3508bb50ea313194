"""The Lua that runs inside Redis: one script that writes, one that lists, one that tidies up.

None decides anything of the contract: Python has judged (`dolmen.stores.verdict`),
and the script applies that if what was judged still stands. Stamps are never numbers
here; they are inside a front, which is compared as bytes. Each touches keys of one hash
tag only.
"""

from __future__ import annotations

import hashlib

_FRONT = """
local function front_of(entry)
  local length = redis.call('GETRANGE', entry, 0, 1)
  if length == '' then return '' end
  return redis.call('GETRANGE', entry, 0, struct.unpack('<H', length) - 1)
end
"""

_CHANGE = (
    _FRONT
    + """
-- Answers 1 when done, 0 when parts are missing, and otherwise the front that stands.
local entry, order, digests = KEYS[1], KEYS[2], KEYS[3]
local expected, front, keeps, member, listed, count, size, xor = unpack(ARGV, 1, 8)
local old, olds, new, news, body = unpack(ARGV, 9)

local stands = front_of(entry)
if stands ~= expected then return stands end
for part = 0, news - 1 do
  if redis.call('EXISTS', new .. part) == 0 then return 0 end
end

-- Redis refuses what takes memory when it is full, but only as a script's first write.
-- So data that is new comes first, and everything else begins with a DEL.
if keeps == '1' then body = redis.call('GETRANGE', entry, #expected, -1) end
if body == '' or keeps == '1' then redis.call('DEL', entry) end
if front ~= '' then redis.call('SET', entry, front .. body) end
for part = 0, news - 1 do redis.call('PERSIST', new .. part) end
for part = 0, olds - 1 do redis.call('UNLINK', old .. part) end

if listed == '1' then
  redis.call('ZADD', order, 0, member)
else
  redis.call('ZREM', order, member)
end

local partition = string.sub(member, 1, 4)
local slot = redis.call('HGET', digests, partition) or string.rep('\\0', 28)
local counted, sized, a, b, c, d = struct.unpack('<I4I8I4I4I4I4', slot)
local e, f, g, h = struct.unpack('<I4I4I4I4', xor)
counted = counted + count
if counted == 0 then
  redis.call('HDEL', digests, partition)
else
  redis.call('HSET', digests, partition, struct.pack('<I4I8I4I4I4I4', counted, sized + size,
    bit.bxor(a, e), bit.bxor(b, f), bit.bxor(c, g), bit.bxor(d, h)))
end
return 1
"""
).encode()

_DROP = b"""
-- Takes parts out that were not committed: those still expire.
for part = 0, ARGV[1] - 1 do
  if redis.call('TTL', KEYS[1] .. part) >= 0 then redis.call('UNLINK', KEYS[1] .. part) end
end
"""

_LIST = (
    _FRONT
    + """
-- Answers the member to go on behind ('' at the end), then fronts.
local entries, low, high, prefix = unpack(ARGV)
local members = redis.call('ZRANGEBYLEX', KEYS[1], low, high, 'LIMIT', 0, 500)
local found, size = {''}, 0
for number, member in ipairs(members) do
  local name = string.sub(member, 5)
  if string.sub(name, 1, #prefix) == prefix then
    local front = front_of(entries .. name)
    if front ~= '' then
      found[#found + 1] = front
      size = size + #front
    end
  end
  if size > 262144 or number == 500 then
    found[1] = member
    break
  end
end
return found
"""
).encode()


def _sha(script: bytes) -> bytes:
    return hashlib.sha1(script, usedforsecurity=False).hexdigest().encode()


CHANGE, DROP, LIST = _sha(_CHANGE), _sha(_DROP), _sha(_LIST)
"""What EVALSHA calls them by."""
SOURCES = {CHANGE: _CHANGE, DROP: _DROP, LIST: _LIST}
"""What EVAL is given where a server does not know them yet."""
