-- The version of the cancel list, and the ids that are on it now. ARGV 1 key prefix.
local private = ARGV[1] .. 'celeriac:1:'
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local version = redis.call('GET', private .. 'cancelled:version') or '0'
return { version, redis.call('ZRANGEBYSCORE', private .. 'cancelled', '(' .. string.format('%.6f', now), '+inf') }
