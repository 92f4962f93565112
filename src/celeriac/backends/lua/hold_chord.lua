-- Take or keep a chord that is complete. After chord.lua.
-- ARGV 1 key prefix  2 group  3 token  4 milliseconds
-- Gives 1 when the token holds it now.
local time = redis.call('TIME')
local book = chords(ARGV[1], time[1] + time[2] / 1000000)
local err = book.wrong(ARGV[2])
if err then return redis.error_reply(err) end
return book.hold(ARGV[2], ARGV[3], ARGV[4]) and 1 or 0
