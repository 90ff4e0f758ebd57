-- ARGV: digest of the record that was judged, claim, attempt, fingerprint, lease, and 1
-- to keep its steps. Claims a key whose record does not stop the claim. Where the
-- record has changed since, the caller judges it anew.
local value = redis.call('GET', key)
if not value or redis.sha1hex(value) ~= ARGV[1] then
    return {micros(now), value or ''}
end
local rest = '\n'
if ARGV[6] == '1' then
    rest = string.sub(value, string.find(value, '\n', 1, true), -1)
end
local fields = {'samecommit1', 'leased', ARGV[2], '-', ARGV[3], ARGV[4], micros(now), micros(now), micros(now + ARGV[5])}
redis.call('SET', key, table.concat(fields, ' ') .. rest)
return {micros(now), '', table.concat(fields, ' ')}
