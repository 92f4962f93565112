-- Look through a part of a list for entries by the digest of their bytes; remove them, or put them to the head of their
-- ready list (parked ones). After places.lua.
-- ARGV 1 key prefix  2 separator  3 queue  4 list  5 from  6 to (both from the right, -1 is the first served)
--      7 'remove' or 'restore'  8 '1': the entries are parked ones  then the digests
-- Gives the digests that were found.
local found = {}
local wanted = {}
for i = 9, #ARGV do wanted[ARGV[i]] = (wanted[ARGV[i]] or 0) + 1 end
local entries = redis.call('LRANGE', ARGV[4], ARGV[5], ARGV[6])
for n = #entries, 1, -1 do
  local entry = entries[n]
  local digest = redis.sha1hex(entry)
  if wanted[digest] and wanted[digest] > 0 then
    if ARGV[7] == 'restore' then
      local step, message = unpark(entry)
      redis.call('RPUSH', ready(ARGV[1], ARGV[3], ARGV[2], step), message)
    end
    redis.call('LREM', ARGV[4], -1, entry)
    wanted[digest] = wanted[digest] - 1
    found[#found + 1] = digest
  end
end
if ARGV[8] == '1' and redis.call('EXISTS', ARGV[4]) == 0 then
  local base = base_of(ARGV[1], ARGV[3])
  redis.call('SREM', base .. 'parkings', ARGV[4]:sub(#(base .. 'parked:') + 1))
end
return found
