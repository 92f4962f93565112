-- Count members of chords: all, or none when a key of one is not as it should be. After chord.lua.
-- ARGV 1 key prefix  2 '1' where entries are kept in order  3 milliseconds to hold what is complete
--      then (group, 'task id:index', index, entry, body, token) each
-- Gives for each 1 when its chord is complete and its token holds it.
local time = redis.call('TIME')
local book = chords(ARGV[1], time[1] + time[2] / 1000000)
for i = 4, #ARGV, 6 do
  local err = book.wrong(ARGV[i])
  if err then return redis.error_reply(err) end
end
local held = {}
for i = 4, #ARGV, 6 do
  local mine = book.count(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5], ARGV[2], ARGV[3])
  held[#held + 1] = mine and 1 or 0
end
return held
