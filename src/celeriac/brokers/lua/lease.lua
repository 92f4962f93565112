-- Whether the server was restarted (its run id changed, or its data is gone) less than a lease ago: then nobody is declared
-- dead, because nobody had the time to renew.
local function is_young(private, run_id, now, lease)
  local boot = redis.call('HMGET', private .. 'boot', 'run_id', 'since')
  if boot[1] ~= run_id then
    redis.call('HSET', private .. 'boot', 'run_id', run_id, 'since', now)
    return true
  end
  return now < tonumber(boot[2] or 0) + lease
end

-- Has this lease ended? A worker without one has none that could be good.
local function has_ended(private, epoch, now)
  local score = redis.call('ZSCORE', private .. 'workers', epoch)
  return not score or tonumber(score) <= now
end

local function clock()
  local time = redis.call('TIME')
  return time[1] + time[2] / 1000000
end
