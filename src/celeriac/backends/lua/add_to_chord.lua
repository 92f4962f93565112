-- One more member of a chord. After chord.lua.
-- ARGV 1 key prefix  2 group
local time = redis.call('TIME')
local book = chords(ARGV[1], time[1] + time[2] / 1000000)
local err = book.wrong(ARGV[2])
if err then return redis.error_reply(err) end
book.add(ARGV[2])
return 1
