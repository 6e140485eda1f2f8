"""The Lua scripts of the bus. Redis runs each of them atomically.

A script that may publish refuses before its first write if Redis has no memory or no disk space, and is never refused
after it. Therefore it has happened completely or not at all.
"""

from __future__ import annotations

_FENCE = """
local function fenced(key, token, process)
    if token == '' then return nil end
    local held = redis.call('HMGET', key, 'token', 'process', 'holder')
    local newer = tonumber(held[1] or 0) - tonumber(token)
    if newer > 0 or newer == 0 and held[2] ~= process then return redis.error_reply('FENCED ' .. held[3]) end
end
"""
"""Refuses a trainer whose lease another trainer has taken over: the stored token is newer than its own. It is equal if
Redis had lost the acquisition of this trainer, so that its successor counted from the same token."""

PUBLISH = (
    _FENCE
    + """
local refused = fenced(KEYS[2], ARGV[1], ARGV[2])
if refused then return refused end
for i = 3, #ARGV, 2 do redis.call('XADD', KEYS[1], '*', 'type', ARGV[i], 'body', ARGV[i + 1]) end
return 1
"""
)
"""Keys: stream, lease. Arguments: token or '', process of the trainer, then type and body of each item."""

COMPLETE = (
    _FENCE
    + """
local refused = fenced(KEYS[3], ARGV[6], ARGV[7])
if refused then return refused end
local input = ARGV[5] ~= '' and redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]  -- copied and hashed whole
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
if input == nil then return 0 end  -- an operator deleted the item itself; the trainer publishes its group again
local body = ARGV[4]
if ARGV[5] ~= '' then
    local inner, size = input[2][4], ''
    local left = #inner
    while left > 127 do
        size = size .. string.char(left % 128 + 128)
        left = math.floor(left / 128)
    end
    body = ARGV[5] .. size .. string.char(left) .. inner .. body
end
if ARGV[3] ~= '' then redis.call('XADD', KEYS[2], '*', 'type', ARGV[3], 'body', body) end
return 1
"""
)
"""Keys: stream of the item, stream of the result, lease. Arguments: group, id of the item, type and body of the result,
a protobuf tag, token or '', process of the trainer. With a tag, the body lacks the field that contains the item, and
the script adds that field from the stream."""

AGE = """
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if #first == 0 then return 0 end
local time = redis.call('TIME')
return time[1] * 1000 + math.floor(time[2] / 1000) - string.match(first[1][1], '^%d+')
"""
"""Key: stream. Returns the milliseconds since the oldest item was published."""

ENDS = """
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if #first == 0 then return {} end
return {first[1][1], redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1][1]}
"""
"""Key: stream. Returns the ids of the oldest and of the newest item; nothing if the stream is empty."""

SET_ASIDE = """
local entry = redis.call('XRANGE', KEYS[1], ARGV[2], ARGV[2])[1]
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
if not entry then return 0 end
local row = {'XADD', KEYS[2], 'MAXLEN', ARGV[3], '*', 'stream', ARGV[4], 'id', ARGV[2], 'error', ARGV[5]}
for i = 1, math.min(#entry[2], 64), 2 do
    row[#row + 1] = 'entry.' .. entry[2][i]
    row[#row + 1] = entry[2][i + 1]
end
redis.call(unpack(row))
return 1
"""
"""Keys: stream, stream of failures. Arguments: group, id of the item, largest length of the stream of failures, name of
the stream, error. Moves an item, with its bytes as they are, to the stream of failures."""

FORGET = """
local forgotten = 0
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
    local about = {}
    for i = 1, #row, 2 do about[row[i]] = row[i + 1] end
    if about.pending == 0 and about.idle > tonumber(ARGV[2]) then
        redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], about.name)
        forgotten = forgotten + 1
    end
end
return forgotten
"""
"""Key: stream. Arguments: group, milliseconds. Removes the consumers that hold no item and have not asked for one for
this long. Removing a consumer that holds items would lose their claims; a living one is created again when it asks."""

ACQUIRE = """
local held = redis.call('HMGET', KEYS[1], 'token', 'holder', 'process', 'beat')
local token, state = tonumber(held[1] or 0), (held[1] or '') .. '/' .. (held[4] or '')
if held[4] and held[4] ~= '0' and state ~= ARGV[3] then return {0, held[2], held[3], state} end
redis.call('HSET', KEYS[1], 'token', token + 1, 'holder', ARGV[1], 'process', ARGV[2], 'beat', 1)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return {token + 1}
"""
"""Key: lease. Arguments: address and process of the new holder, the state in which the lease may be taken over or '',
milliseconds until Redis may forget the lease. Returns the new token, or 0 and the address, process and state of the
present holder. The state changes with each renewal."""

RENEW = """
local held = redis.call('HMGET', KEYS[1], 'token', 'process', 'holder')
local newer = tonumber(held[1] or 0) - tonumber(ARGV[1])
if newer > 0 or newer == 0 and held[2] ~= ARGV[3] then return held[3] end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'holder', ARGV[2], 'process', ARGV[3], 'beat', ARGV[4])
redis.call('PEXPIRE', KEYS[1], ARGV[5])
return ''
"""
"""Key: lease. Arguments: token, address and process of the holder, number of the renewal (0 releases the lease),
milliseconds until Redis may forget the lease. Returns the address of the trainer that took the lease over, or ''."""
