-- End chords. After chord.lua.
-- ARGV 1 key prefix  2 seconds for which they are known as done   then (group, token) each
-- Gives for each 1 when it was the token's to end.
local book = chords(ARGV[1], 0)
for i = 3, #ARGV, 2 do
  local err = book.wrong(ARGV[i])
  if err then return redis.error_reply(err) end
end
local ended = {}
for i = 3, #ARGV, 2 do
  local mine = book.may_fire(ARGV[i], ARGV[i + 1])
  if mine then book.fire(ARGV[i], ARGV[2]) end
  ended[#ended + 1] = mine and 1 or 0
end
return ended
