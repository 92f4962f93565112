-- Give a lock up if it is still ours. ARGV 1 key  2 token.
if redis.call('GET', ARGV[1]) == ARGV[2] then return redis.call('DEL', ARGV[1]) end
return 0
