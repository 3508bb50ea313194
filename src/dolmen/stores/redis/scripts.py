"""The Lua that runs inside Redis: one script that writes, one that tidies up.

Neither decides anything of the contract: Python has judged (`dolmen.stores.old_verdict`),
and the script applies that if what was judged still stands. Stamps are never numbers
here; they are inside a front, which is compared as bytes. Every key is declared, and of
one hash tag, so a cluster refuses the whole script where it does not hold them all.
"""

from __future__ import annotations

import hashlib

_CHANGE = b"""
-- Answers 1 when done, 0 when parts are missing, and otherwise the front that stands.
-- Behind the first three keys are the parts that go (`olds` of them), then those that come.
local entry, order, digests = KEYS[1], KEYS[2], KEYS[3]
local expected, front, keeps, member, listed, count, size, xor, olds, body = unpack(ARGV)
local news = 4 + olds

local length = redis.call('GETRANGE', entry, 0, 1)
local stands = ''
if length ~= '' then
  stands = redis.call('GETRANGE', entry, 0, struct.unpack('<H', length) - 1)
end
if stands ~= expected then return stands end
for part = news, #KEYS do
  if redis.call('EXISTS', KEYS[part]) == 0 then return 0 end
end

-- Redis refuses what takes memory when it is full, but only as a script's first write.
-- So data that is new comes first, and everything else begins with a DEL.
if keeps == '1' then body = redis.call('GETRANGE', entry, #expected, -1) end
if body == '' or keeps == '1' then redis.call('DEL', entry) end
if front ~= '' then redis.call('SET', entry, front .. body) end
for part = 4, news - 1 do redis.call('UNLINK', KEYS[part]) end
for part = news, #KEYS do redis.call('PERSIST', KEYS[part]) end

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
if counted <= 0 then
  redis.call('HDEL', digests, partition)
else
  redis.call('HSET', digests, partition, struct.pack('<I4I8I4I4I4I4', counted, sized + size,
    bit.bxor(a, e), bit.bxor(b, f), bit.bxor(c, g), bit.bxor(d, h)))
end
return 1
"""

_DROP = b"""
-- Takes parts out that were not committed: those still expire.
for _, part in ipairs(KEYS) do
  if redis.call('TTL', part) >= 0 then redis.call('UNLINK', part) end
end
"""


def _sha(script: bytes) -> bytes:
    return hashlib.sha1(script, usedforsecurity=False).hexdigest().encode()


CHANGE, DROP = _sha(_CHANGE), _sha(_DROP)
"""What EVALSHA calls them by."""
SOURCES: dict[object, bytes] = {CHANGE: _CHANGE, DROP: _DROP}
"""What EVAL is given where a server does not know them yet."""
