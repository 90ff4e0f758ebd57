-- ARGV: claim, fingerprint, lease. Claims a key that has no record. Where it has one,
-- the caller judges it.
local value = redis.call('GET', key)
if value then
    return {micros(now), value}
end
local fields = {'samecommit1', 'leased', ARGV[1], '-', '1', ARGV[2], micros(now), micros(now), micros(now + ARGV[3])}
redis.call('SET', key, table.concat(fields, ' ') .. '\n')
return {micros(now), '', table.concat(fields, ' ')}
