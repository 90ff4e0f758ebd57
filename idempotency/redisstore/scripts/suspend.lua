-- ARGV: claim.
local fields, rest = held(ARGV[1])
if not fields then
    return ''
end
fields[8], fields[9] = micros(now), micros(now)
return put(fields, rest)
