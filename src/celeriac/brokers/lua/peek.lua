-- Compressed result documents, which no script can look into; '' for any other.
-- ARGV 1 database of results ('': this one)  2 this database   then the keys
local documents = {}
if ARGV[1] ~= '' then redis.call('SELECT', ARGV[1]) end
for i = 3, #ARGV do
  local document = redis.pcall('GETEX', ARGV[i])
  documents[i - 2] = type(document) == 'string' and document:sub(1, 1) == '\0' and document or ''
end
if ARGV[1] ~= '' then redis.call('SELECT', ARGV[2]) end
return documents
