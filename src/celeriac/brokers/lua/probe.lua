-- May this user store and tell results? Fails when not; changes nothing.
-- ARGV 1 database of results ('': this one)  2 this database  3 what the keys of results begin with
if ARGV[1] ~= '' then redis.call('SELECT', ARGV[1]) end
redis.call('SETRANGE', ARGV[3], 0, '')
if ARGV[1] ~= '' then redis.call('SELECT', ARGV[2]) end
redis.call('PUBLISH', ARGV[3], '')
return 1
