-- ARGV: claim, lease. Not one that was suspended: an extension that comes late must not
-- undo that.
local fields, rest = held(ARGV[1])
if not fields or fields[8] == fields[9] then
    return ''
end
fields[8], fields[9] = micros(now), micros(now + ARGV[2])
return put(fields, rest)
