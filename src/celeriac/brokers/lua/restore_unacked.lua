-- Put messages that a Celery worker has taken and not acknowledged to the heads of their lists.
-- ARGV 1 the hash `unacked`  2 its index   then (tag, message, n, list * n) each
-- Gives how many.
local count = 0
local i = 3
while i <= #ARGV do
  local tag, message, lists = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  if lists > 0 then
    if redis.call('HEXISTS', ARGV[1], tag) == 1 then
      local pushed = 0
      for n = 1, lists do
        local r = redis.pcall('RPUSH', ARGV[i + 2 + n], message)
        if type(r) ~= 'table' then pushed = pushed + 1 end
      end
      if pushed > 0 then
        redis.call('HDEL', ARGV[1], tag)
        redis.call('ZREM', ARGV[2], tag)
        count = count + 1
      end
    else
      redis.call('ZREM', ARGV[2], tag)
    end
  elseif redis.call('HEXISTS', ARGV[1], tag) == 0 then
    redis.call('ZREM', ARGV[2], tag)
  end
  i = i + 3 + lists
end
return count
