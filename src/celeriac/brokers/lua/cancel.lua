-- Store ids as cancelled for some seconds. ARGV 1 key prefix  2 seconds  then the ids. Gives the new version.
local private = ARGV[1] .. 'celeriac:1:'
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
redis.call('ZREMRANGEBYSCORE', private .. 'cancelled', '-inf', now)
for i = 3, #ARGV do redis.call('ZADD', private .. 'cancelled', now + ARGV[2], ARGV[i]) end
return redis.call('INCR', private .. 'cancelled:version')
