-- ARGV: claim.
local fields = held(ARGV[1])
if not fields then
    return ''
end
redis.call('DEL', key)
return table.concat(fields, ' ')
