-- Is this result document a SUCCESS? JSON, msgpack, pickle and YAML forms; nil or false is none.
local function is_success(document)
  if not document or type(document) ~= 'string' then return false end
  local first = document:byte(1)
  if first == 123 then -- {
    if document:find('^{"status": ?"SUCCESS"') then return true end
    if document:find('^{"status": ?"') then return false end
    local read, record = pcall(cjson.decode, document)
    return read and type(record) == 'table' and record.status == 'SUCCESS'
  end
  if first == 128 then -- pickle
    local _, at = document:find('status', 1, true)
    local hit = at and document:find('SUCCESS', at, true)
    return hit and hit - at < 16 or false
  end
  if first and first > 128 then -- msgpack
    local read, record = pcall(cmsgpack.unpack, document)
    return read and type(record) == 'table' and record.status == 'SUCCESS'
  end
  return document:find('^status: SUCCESS\n') ~= nil or document:find('\nstatus: SUCCESS\n', 1, true) ~= nil
end
