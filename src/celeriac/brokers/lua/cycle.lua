-- One cycle of a consumer: settle what is finished, bring what is due to its list, claim what is wanted. After places.lua,
-- success.lua and chord.lua.
--
-- A script is no transaction: what was written before an error stays. So each completion does first what can fail, undoes
-- it when something does, and only then what can't (SET, PUBLISH, HDEL). What is done to chords is not undone: where there
-- are some, the types of all keys are looked at before.
--
-- KEYS  the ready lists (step by step, in each step the queues in their order), the doorbell of each queue, the version of
--       the cancel list. They are declared because a server before 7.0 tracks declared keys, not those that were read.
-- ARGV  1 key prefix  2 priority separator  3 epoch  4 lease  5 how many  6 how many bytes  7 what new tags begin with
--       8 letters for new tags  9 database of results ('': this one)  10 this database  11 cap of dead letters
--       12 one queue after the other ('1') or all in turn ('0')  13 number of queues  14 number of steps
--       then the queues, the steps, the number of parked keys, (key, how many) each, and the completions:
--       q queue                                    the following receipts belong to this queue
--       a tag                                      acknowledge
--       s tag key seconds document                 store and acknowledge
--       x tag how argument blob key seconds document guard n (list|base, id, due, blob) * n
--           tag '': nothing to settle. how: A ack, R to the head of list `argument`, Q to its tail, D schedule at
--           `argument`, P park under `argument`, X dead for reason `argument`, ! it can't be carried out for that reason.
--           blob: '=' and what takes the message's place, or ''. n envelopes: a ready one has an empty id. One without a
--           list or base is a mark: the next one is published only if no envelope with the mark's id was within a day.
--       c (as x) prefix ordered group token opened counted (group, size, body, members, structure, seconds) * opened
--           (group, 'task id:index', index, entry, body, token) * counted
--           as x, and: open chords and count members, in the database of results, under that prefix, entries in order
--           ('1') or not. With a group, all but the settlement is done only if the token may end that chord, which ends it.
-- Gives { seconds, microseconds, next due, cancel version, more, exceptions, claimed, unparked, faults }
--       exceptions: (number of a completion, error, or '' for lost, or groups that are complete and held: it was carried
--       out, but stays in flight) each; claimed: (index of the list in KEYS, messages) each; unparked: (index of the queue,
--       step, message) each; faults: (key, or PUBLISH, error) each.
--       New tags are counted in the order unparked, claimed: begin .. rounds of the letters .. letter .. '.' .. step. (To
--       write a number costs Lua more than to claim a message.)

local ARGV, KEYS = ARGV, KEYS
local call, try = redis.call, redis.pcall
local prefix, sep, epoch = ARGV[1], ARGV[2], ARGV[3]
local private = prefix .. 'celeriac:1:'
local time = call('TIME')
local now = time[1] + time[2] / 1000000
local cap = tonumber(ARGV[11])
local faults, exceptions = {}, {}

-- Who claims has a lease, or nobody would give back what it holds. It is also the first write of every cycle that writes:
-- where writes are refused (memory, disk, replica) it fails before anything was done.
local leased = false
local function lease()
  if leased then return end
  leased = true
  call('ZADD', private .. 'workers', 'NX', time[1] + ARGV[4], epoch)
end

local queues, steps = tonumber(ARGV[13]), tonumber(ARGV[14])
local i = 15 + queues + steps
local parked = tonumber(ARGV[i])
local demands = i + 1
i = demands + 2 * parked

-- Settle

local function fault(key, text)
  faults[#faults + 1] = key
  faults[#faults + 1] = text
end

local elsewhere = ARGV[9] ~= ''
local stores = {}
local base, inflight
local at = 0

local function store(s)
  local key, seconds, document = ARGV[s], ARGV[s + 1], ARGV[s + 2]
  if seconds == '' then call('SET', key, document) else call('SETEX', key, seconds, document) end
  local told = try('PUBLISH', key, document)
  if type(told) == 'table' then fault('PUBLISH', told.err) end
end

-- Results in another database are written together.
local function store_there()
  if #stores == 0 then return end
  call('SELECT', ARGV[9])
  for n = 1, #stores do store(stores[n]) end
  call('SELECT', ARGV[10])
  stores = {}
end

local function fail(what)
  exceptions[#exceptions + 1] = at
  exceptions[#exceptions + 1] = what
end

local function guarded(key)
  store_there() -- a SUCCESS of this very cycle guards too
  if elsewhere then call('SELECT', ARGV[9]) end
  local document = try('GETEX', key)
  if elsewhere then call('SELECT', ARGV[10]) end
  return is_success(document)
end

-- What a completion says of chords, from q to `last`. One function, so that a cycle without chords makes no others.
local books = {}
local function chords_of(q, last)
  local book = books[ARGV[q]] or chords(ARGV[q], now)
  books[ARGV[q]] = book
  local misfit = book.misfit
  local group, token = ARGV[q + 2], ARGV[q + 3]
  local parts = q + 6 + 6 * ARGV[q + 4]
  local self = {}

  local function there()
    if elsewhere then call('SELECT', ARGV[9]) end
  end

  function self.back()
    if elsewhere then call('SELECT', ARGV[10]) end
  end

  -- The text of an error when the message can't be put where it is to go.
  function self.misplaced(how, argument)
    if how == 'R' or how == 'Q' then return misfit(argument, 'list') end
    if how == 'P' then return misfit(base .. 'parked:' .. argument, 'list') or misfit(base .. 'parkings', 'set') end
    if how == 'X' then return misfit(base .. 'dead', 'zset') or misfit(base .. 'letters', 'hash') end
    if how ~= 'D' then return nil end
    if tonumber(argument) ~= tonumber(argument) then return 'no time: ' .. argument end
    return misfit(base .. 'schedule', 'zset') or misfit(base .. 'scheduled', 'hash')
  end

  -- The text of an error when a key is not as it should be; otherwise, is there a chord to end that is not the token's?
  function self.wrong()
    there()
    local err = group ~= '' and book.wrong(group) or nil
    for c = q + 6, last, 6 do err = err or book.wrong(ARGV[c]) end
    local refused = not err and group ~= '' and not book.may_fire(group, token)
    self.back()
    return err, refused
  end

  -- End, open and count. Gives the groups that are complete and held, or nil.
  function self.carry_out()
    there()
    local complete
    local hold = math.floor(math.max(2000, ARGV[4] * 500))
    if group ~= '' then book.fire(group, 300) end
    for c = q + 6, last, 6 do
      if c < parts then
        book.open(ARGV[c], ARGV[c + 1], ARGV[c + 2], ARGV[c + 3], ARGV[c + 4], ARGV[c + 5])
      elseif book.count(
        ARGV[c], ARGV[c + 1], ARGV[c + 2], ARGV[c + 3], ARGV[c + 4], ARGV[c + 5], ARGV[q + 1], hold
      ) then
        complete = complete or {}
        complete[#complete + 1] = ARGV[c]
      end
    end
    self.back()
    return complete
  end

  return self
end

local function carry_out(p, mine)
  local tag, how, argument = ARGV[p + 1], ARGV[p + 2], ARGV[p + 3]
  local message
  if tag ~= '' then
    message = call('HGET', inflight, tag)
    if not message then return fail('') end
  end
  local err, refused, complete
  local undo = {}
  if how == '!' then err = argument end
  if mine then
    err = tag ~= '' and mine.misplaced(how, argument) or nil
    if not err then err, refused = mine.wrong() end
  end
  local n = refused and 0 or tonumber(ARGV[p + 9])
  local known = false
  for e = p + 10, p + 6 + 4 * n, 4 do
    if err then break end
    local key, id = ARGV[e], ARGV[e + 1]
    if known then
      known = false
    elseif key == '' then
      local mark = private .. 'once:' .. id
      known = not call('SET', mark, 1, 'NX', 'EX', 86400)
      if not known then undo[#undo + 1] = { 'DEL', mark } end
    elseif id == '' then
      local r = try('LPUSH', key, ARGV[e + 3])
      if type(r) == 'table' then
        err = r.err .. ' (' .. key .. ')'
      else
        undo[#undo + 1] = { 'LPOP', key }
      end
    else
      err = schedule(key, id, ARGV[e + 2], ARGV[e + 3])
      if err then
        err = err .. ' (' .. key .. 'schedule)'
      else
        undo[#undo + 1] = { 'ZREM', key .. 'schedule', id }
        undo[#undo + 1] = { 'HDEL', key .. 'scheduled', id }
      end
    end
  end
  if mine and not err and not refused then
    local fine, told = pcall(mine.carry_out)
    if fine then
      complete = told
    else -- a command that this user may not use: only that can still be
      mine.back()
      err = type(told) == 'table' and told.err or told
    end
  end
  if not err and not complete and tag ~= '' and how ~= 'A' then
    local body = message
    if ARGV[p + 4] ~= '' then body = ARGV[p + 4]:sub(2) end
    local r
    if how == 'R' then
      r = try('RPUSH', argument, body)
    elseif how == 'Q' then
      r = try('LPUSH', argument, body)
    elseif how == 'D' then
      err = schedule(base, tag, argument, body)
    elseif how == 'P' then
      err = park(base, argument, tag:match('%.(%d+)$'), body)
    elseif how == 'X' then
      err = bury(base, tag, now, argument, body, cap)
    end
    if type(r) == 'table' then err = r.err .. ' (' .. argument .. ')' end
  end
  if err then
    for u = #undo, 1, -1 do call(unpack(undo[u])) end
    if message then
      local worse = bury(base, tag, now, err, message, cap)
      if worse then
        err = err .. '; it stays in flight: ' .. worse
      else
        call('HDEL', inflight, tag)
      end
    end
    return fail(err)
  end
  if ARGV[p + 5] ~= '' and not refused and not (ARGV[p + 8] == '1' and guarded(ARGV[p + 5])) then
    if elsewhere then stores[#stores + 1] = p + 5 else store(p + 5) end
  end
  if complete then return fail(complete) end
  if message then call('HDEL', inflight, tag) end
end

local last = #ARGV
if i <= last then lease() end
while i <= last do
  local op = ARGV[i]
  if op == 's' then
    at = at + 1
    if call('HDEL', inflight, ARGV[i + 1]) ~= 1 then
      fail('')
    elseif elsewhere then
      stores[#stores + 1] = i + 2
    else
      local key, seconds, document = ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
      if seconds == '' then call('SET', key, document) else call('SETEX', key, seconds, document) end
      local told = try('PUBLISH', key, document)
      if type(told) == 'table' then fault('PUBLISH', told.err) end
    end
    i = i + 5
  elseif op == 'a' then
    at = at + 1
    if call('HDEL', inflight, ARGV[i + 1]) ~= 1 then fail('') end
    i = i + 2
  elseif op == 'q' then
    base = base_of(prefix, ARGV[i + 1])
    inflight = base .. 'inflight:' .. epoch
    i = i + 2
  else
    at = at + 1
    local q = i + 10 + 4 * tonumber(ARGV[i + 9])
    if op == 'c' then
      local behind = q + 6 + 6 * (ARGV[q + 4] + ARGV[q + 5])
      carry_out(i, chords_of(q, behind - 1))
      i = behind
    else
      carry_out(i)
      i = q
    end
  end
end

store_there()

-- Claim

local left, room = tonumber(ARGV[5]), tonumber(ARGV[6])
local wanted = left > 0
local begin, letters, sub = ARGV[7], ARGV[8], string.sub
local round, letter = 0, 0 -- of the last tag
local head = begin .. '0'

local function new_tag(ending)
  if letter == #letters then
    letter, round = 0, round + 1
    head = begin .. round
  end
  letter = letter + 1
  return head .. sub(letters, letter, letter) .. ending
end
local claimed, unparked = {}, {}
local bases, step_of = {}, {}
for j = 1, queues do bases[j] = base_of(prefix, ARGV[14 + j]) end
for s = 1, steps do step_of[s] = ARGV[14 + queues + s] end

-- What is due goes to the head of its list, the earliest first: no more than can be claimed now, or the next cycle's would
-- stand before them.
local next_due = ''
for j = 1, queues do
  local key = bases[j] .. 'schedule'
  local first = try('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first.err then
    fault(key, first.err)
  elseif first[1] then
    if wanted and tonumber(first[2]) <= now then
      lease()
      local due = call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, math.min(left, 500))
      local messages = try('HMGET', bases[j] .. 'scheduled', unpack(due))
      if messages.err then
        fault(bases[j] .. 'scheduled', messages.err)
        first = {}
      else
        for n = #due, 1, -1 do
          if messages[n] then
            local list = ready(prefix, ARGV[14 + j], sep, due[n]:match('%.(%d+)$') or '0')
            local r = try('RPUSH', list, messages[n])
            if type(r) == 'table' then bury(bases[j], due[n], now, r.err .. ' (' .. list .. ')', messages[n], cap) end
          end
        end
        call('ZREM', key, unpack(due))
        call('HDEL', bases[j] .. 'scheduled', unpack(due))
        first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
      end
    end
    if first[1] and (next_due == '' or tonumber(first[2]) < tonumber(next_due)) then next_due = first[2] end
  end
end

if parked > 0 then lease() end
for d = demands, demands + 2 * parked - 2, 2 do
  local many = tonumber(ARGV[d + 1])
  for j = 1, queues do
    local list = bases[j] .. 'parked:' .. ARGV[d]
    local hash = bases[j] .. 'inflight:' .. epoch
    local entries = many > 0 and room > 0 and try('RPOP', list, math.min(many, 500))
    if entries and entries.err then
      fault(list, entries.err)
    elseif entries then
      local fields, found = {}, {}
      local was_round, was_letter, was_head = round, letter, head
      for n = 1, #entries do
        local step, message = unpark(entries[n])
        fields[#fields + 1] = new_tag('.' .. step)
        fields[#fields + 1] = message
        found[#found + 1] = j - 1
        found[#found + 1] = step
        found[#found + 1] = message
      end
      local r = try('HSET', hash, unpack(fields))
      if type(r) == 'table' then
        fault(hash, r.err)
        round, letter, head = was_round, was_letter, was_head
        for n = #entries, 1, -1 do call('RPUSH', list, entries[n]) end
      else
        for n = 1, #found do unparked[#unparked + 1] = found[n] end
        for n = 1, #entries do room = room - #entries[n] end
        many = many - #entries
        if call('EXISTS', list) == 0 then call('SREM', bases[j] .. 'parkings', ARGV[d]) end
      end
    end
  end
end

-- Record messages as in flight; those over the bound of bytes go back. Lua can't unpack 8,000 values, hence at most 500.
local function take(index, list, messages, step)
  local n = #messages
  local hash = bases[index] .. 'inflight:' .. epoch
  local fields = {}
  local ending = '.' .. step
  local keep = n
  local was_round, was_letter, was_head = round, letter, head
  for m = 1, n do
    local message = messages[m]
    fields[2 * m - 1] = new_tag(ending)
    fields[2 * m] = message
    room = room - #message
    if room <= 0 then
      keep = m
      break
    end
  end
  local r = try('HSET', hash, unpack(fields))
  if type(r) == 'table' then
    fault(hash, r.err)
    round, letter, head = was_round, was_letter, was_head
    keep = 0
  end
  for m = n, keep + 1, -1 do
    call('RPUSH', list, messages[m])
    messages[m] = nil
  end
  left = left - keep
  return keep
end

local lengths = {}
local lists = 0 -- that are not empty
if wanted then
  for k = 1, queues * steps do
    local length = try('LLEN', KEYS[k])
    if type(length) == 'table' then
      fault(KEYS[k], length.err)
    elseif length > 0 then
      lengths[k] = length
      lists = lists + 1
    end
  end
end

if lists > 0 then
  lease()
  local one_by_one = ARGV[12] == '1'
  local chunk = 32
  for s = 1, steps do
    local first = 1
    while first <= queues and left > 0 and room > 0 do
      -- the queues that share what is left; one at a time where their order is strict
      local open = {}
      for j = first, one_by_one and first or queues do
        if lengths[(s - 1) * queues + j] then open[#open + 1] = j end
      end
      first = one_by_one and first + 1 or queues + 1
      while #open > 0 and left > 0 and room > 0 do
        local again = {}
        for o = 1, #open do
          local j = open[o]
          local index = (s - 1) * queues + j
          local many = math.min(chunk, lengths[index], math.ceil(left / (#open - o + 1)))
          local messages = call('RPOP', KEYS[index], many)
          local got = #messages
          local before = room
          local kept = take(j, KEYS[index], messages, step_of[s])
          lengths[index] = kept > 0 and lengths[index] - kept or nil -- nil: nothing can be taken from it now
          if kept > 0 then
            claimed[#claimed + 1] = index - 1
            claimed[#claimed + 1] = messages
            -- never take out much more than fits
            chunk = math.max(1, math.min(500, math.ceil(room * kept / (before - room + 1))))
          end
          if kept > 0 and kept == got and lengths[index] > 0 then again[#again + 1] = j end
          if left <= 0 or room <= 0 then break end
        end
        open = again
      end
    end
  end
end

-- Arm the wake-up: the server tells us when what was read changes. A write of our own ends that for its key, so the lists
-- that we took from are read once more.
local version = call('GET', KEYS[#KEYS]) or '0'
local more = 0
if wanted then
  for k in pairs(lengths) do
    if call('LLEN', KEYS[k]) > 0 then
      more = 1
      break
    end
  end
  if more == 0 then
    for k = queues * steps + 1, #KEYS - 1 do try('GET', KEYS[k]) end
  end
end

return { time[1], time[2], next_due, version, more, exceptions, claimed, unparked, faults }
