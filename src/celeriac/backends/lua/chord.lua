-- A chord as it stands. After the driver's chord.lua.
-- ARGV 1 key prefix  2 group
-- Gives what `look` does.
local time = redis.call('TIME')
local book = chords(ARGV[1], time[1] + time[2] / 1000000)
local err = book.wrong(ARGV[2])
if err then return redis.error_reply(err) end
return book.look(ARGV[2])
