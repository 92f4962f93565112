-- Chords that have not moved for long. After chord.lua.
-- ARGV 1 key prefix  2 seconds  3 how many at most
-- Gives what `standing` does.
local time = redis.call('TIME')
return chords(ARGV[1], time[1] + time[2] / 1000000).standing(ARGV[2], tonumber(ARGV[3]))
