-- May this user store and tell results, and keep chords? Fails when not; changes nothing.
-- ARGV 1 database of results ('': this one)  2 this database  3 what the keys of results begin with  4 their key prefix
if ARGV[1] ~= '' then redis.call('SELECT', ARGV[1]) end
redis.call('SETRANGE', ARGV[3], 0, '')
if ARGV[1] ~= '' then redis.call('SELECT', ARGV[2]) end
redis.call('PUBLISH', ARGV[3], '')
-- Of chords it is only asked, of a server that can say (7.0): what chord.lua calls, on the keys that it uses.
if not redis.acl_check_cmd then return 1 end
for _, key in ipairs({ 'celery-taskset-meta-', 'celeriac:1:chord:', 'celeriac:1:chords' }) do
  key = ARGV[4] .. key
  for _, command in ipairs({
    'DEL', 'EXISTS', 'EXPIRE', 'GET', 'HDEL', 'HEXISTS', 'HGET', 'HKEYS', 'HMGET', 'HSET', 'HSETNX', 'INCR', 'LLEN',
    'LRANGE', 'PERSIST', 'RPUSH', 'SADD', 'SET', 'SISMEMBER', 'SMEMBERS', 'TTL', 'TYPE', 'ZADD', 'ZCARD', 'ZRANGE',
    'ZRANGEBYSCORE', 'ZREM', 'ZSCORE',
  }) do
    if not redis.acl_check_cmd(command, key) then
      return redis.error_reply('NOPERM chords need ' .. command .. ' on ' .. key .. '*')
    end
  end
end
return 1
