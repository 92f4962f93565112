-- Claim the one message that an idle worker was told of: what cycle.lua does, and nothing else, so in a fraction of the time.
-- KEYS  1 the list  2 the version of the cancel list (declared: see cycle.lua)
-- ARGV  1 leases of the workers  2 epoch  3 lease  4 in-flight hash  5 the message's tag
-- Gives { seconds, microseconds, cancel version, 1 if a whole cycle has to look again, message or nil }
local call = redis.call
local time = call('TIME')
call('ZADD', ARGV[1], 'NX', time[1] + ARGV[3], ARGV[2]) -- who claims has a lease
local message = redis.pcall('RPOP', KEYS[1])
local again = 0
if type(message) == 'table' then
  message, again = false, 1
elseif message then
  local r = redis.pcall('HSET', ARGV[4], ARGV[5], message)
  if type(r) == 'table' then
    call('RPUSH', KEYS[1], message)
    message, again = false, 1
  elseif call('LLEN', KEYS[1]) > 0 then -- this also arms the wake-up: the next push to the list is told
    again = 1
  end
end
return { time[1], time[2], call('GET', KEYS[2]) or '0', again, message }
