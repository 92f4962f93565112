-- Who is dead, if it is our turn to give back what they held. After lease.lua.
-- ARGV 1 key prefix  2 lease  3 run id of the server  4 token  5 milliseconds that our turn may take
-- Gives the epochs whose lease has ended; none while the server is young or somebody else has the turn.
local private = ARGV[1] .. 'celeriac:1:'
local now = clock()
if is_young(private, ARGV[3], now, tonumber(ARGV[2])) then return {} end
local dead = redis.call('ZRANGEBYSCORE', private .. 'workers', '-inf', now)
if #dead == 0 then return dead end
if not redis.call('SET', private .. 'recovering', ARGV[4], 'NX', 'PX', ARGV[5]) then return {} end
return dead
