-- ARGV: claim, the beginning of a step's line up to its name, and that line without its
-- end. The first step of a name stays. A lease that ends when its record last changed
-- is one that was suspended, so a step must neither make it one nor undo it.
local fields, rest = held(ARGV[1])
if not fields then
    return ''
end
if not string.find(rest, '\n' .. ARGV[2], 1, true) then
    rest = rest .. ARGV[3] .. ',"recorded_at":' .. micros(now) .. '}\n'
end
if fields[8] ~= fields[9] then
    fields[8] = micros(now)
    if fields[8] == fields[9] then
        fields[8] = micros(now + 1)
    end
end
return put(fields, rest)
