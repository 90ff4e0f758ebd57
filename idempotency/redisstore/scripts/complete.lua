-- ARGV: claim, call, time to live, type and bytes of the answer. A call that is sent
-- again, by a client that has not heard the reply, gets the same one.
local value = redis.call('GET', key)
local fields = value and parse(value)
if not fields or fields[3] ~= ARGV[1] then
    return ''
end
if fields[2] == 'completed' then
    return fields[4] == ARGV[2] and table.concat(fields, ' ') or ''
end
local expires = now + ARGV[3]
fields[2], fields[4], fields[8], fields[9] = 'completed', ARGV[2], micros(now), micros(expires)
redis.call('PERSIST', key)
-- The server's own expiry only cleans up: who reads the record goes by its time.
redis.call('SET', key, table.concat(fields, ' ') .. '\n' .. ARGV[4], 'PXAT', string.format('%.0f', math.ceil(expires / 1000) + 1))
return table.concat(fields, ' ')
