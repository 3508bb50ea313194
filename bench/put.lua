-- POST of bodies of 1 KiB, none like another, each to a name of its own (64 hex digits).
-- Arguments: a word no other run has (16 hex digits), and the path, in which an asterisk
-- stands for the name. Names fall into partitions by their CRC, so they come in no order.
local before, after, rest, filler, count, named

function init(args)
  local first, last = string.match(args[2], "^([^*]*)%*?(.*)$")
  count, named = 0, string.find(args[2], "*", 1, true) ~= nil
  before = "POST " .. first
  after = last .. " HTTP/1.1\r\nHost: " .. wrk.headers["Host"]
    .. "\r\nContent-Type: application/octet-stream\r\nContent-Length: 1024\r\n\r\n"
  rest = args[1]
  filler = string.rep("x", 1024 - 64)
end

function request()
  count = count + 1
  local name = string.format("%048d", count) .. rest
  return before .. (named and name or "") .. after .. name .. filler
end
