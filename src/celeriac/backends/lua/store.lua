-- Store result documents and tell their watchers. After success.lua.
-- ARGV 1 deadline by this server's clock, or ''   then (key, seconds or '', document, '1' to keep a stored SUCCESS) each
-- Gives 0 when the deadline had passed (then nothing was done), else 1.
if ARGV[1] ~= '' then
  local time = redis.call('TIME')
  if time[1] + time[2] / 1000000 > tonumber(ARGV[1]) then return 0 end
end
for i = 2, #ARGV, 4 do
  local key, document = ARGV[i], ARGV[i + 2]
  local held = false
  if ARGV[i + 3] == '1' then held = is_success(redis.pcall('GET', key)) end
  if not held then
    if ARGV[i + 1] == '' then
      redis.call('SET', key, document)
    else
      redis.call('SET', key, document, 'EX', ARGV[i + 1])
    end
    redis.call('PUBLISH', key, document)
  end
end
return 1
