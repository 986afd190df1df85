-- Bring an account: its balance at seq, and what the ledger knows to be owed or held beside it.
-- KEYS: account, holds. ARGV: epoch, mark, balance, seq, then of each hold its id, amount, state (e:
-- an event not settled yet, r: the residual of an estimate), started_at.
-- Answers 1; 0 it was here already; -1 the mark left before the ledger was read is not here; -2 it
-- is of a later epoch.
local entry = redis.call('HMGET', KEYS[1], 'epoch', 'balance', 'next_balance', 'next_seq', 'mark')
if entry[1] and tonumber(entry[1]) > tonumber(ARGV[1]) then return -2 end
if entry[1] == ARGV[1] and entry[2] then return 0 end
if entry[1] ~= ARGV[1] or entry[5] ~= ARGV[2] then return -1 end
local balance, seq = ARGV[3], ARGV[4]
if entry[4] and tonumber(entry[4]) > tonumber(seq) then balance, seq = entry[3], entry[4] end
for i = 5, #ARGV, 4 do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if not known then
    redis.call('HSET', KEYS[2], ARGV[i],
      ARGV[i + 1] .. ' 0 ' .. ARGV[i + 2] .. ' - ' .. ARGV[i + 3] .. ' ')
  else  -- its owner knows better, unless the call cost more than it held
    local was = string.match(known, '^%d+')
    if tonumber(was) < tonumber(ARGV[i + 1]) then
      redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1] .. string.sub(known, #was + 1))
    end
  end
end
local held = 0
for _, known in ipairs(redis.call('HVALS', KEYS[2])) do
  held = held + tonumber(string.match(known, '^%d+'))
end
held = string.format('%.0f', math.min(held, 9007199254740991))
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'epoch', ARGV[1], 'balance', balance, 'seq', seq, 'held', held)
return 1
