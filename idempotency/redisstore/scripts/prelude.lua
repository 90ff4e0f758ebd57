-- A record is one string: a line of nine fields, and behind its newline the steps of
-- work in progress, a line of JSON each, or the type of the answer and its bytes. The
-- fields are: samecommit1, leased or completed, claim, call that completed it, attempt,
-- fingerprint, when it was created, when it last changed, until when its lease or its
-- answer lasts. Times are the server's, in microseconds since 1970.
local key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]

-- micros writes a time, or one that is that much later: a number of Lua's is exact up
-- to the year 2255.
local function micros(time) return string.format('%.0f', time) end

local function parse(value)
    local stop = string.find(value, '\n', 1, true)
    local fields = {}
    for field in string.gmatch(string.sub(value, 1, (stop or 1) - 1), '%S+') do fields[#fields + 1] = field end
    if fields[1] ~= 'samecommit1' or #fields ~= 9 then
        return nil
    end
    return fields, string.sub(value, stop)
end

-- held returns the fields of the key's record and what is behind them, if it is the
-- claim's and in progress.
local function held(claim)
    local value = redis.call('GET', key)
    if not value then
        return nil
    end
    local fields, rest = parse(value)
    if not fields or fields[2] ~= 'leased' or fields[3] ~= claim then
        return nil
    end
    return fields, rest
end

-- put writes a record that stays until it is completed. PERSIST comes first: a server
-- whose memory is full allows it, and then lets the script finish. What has begun must
-- be able to end.
local function put(fields, rest)
    redis.call('PERSIST', key)
    redis.call('SET', key, table.concat(fields, ' ') .. rest)
    return table.concat(fields, ' ')
end
