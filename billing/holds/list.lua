-- What an account holds. KEYS: account, holds. ARGV: started before (milliseconds).
-- Answers {epoch, seq, balance, held, then of each hold its id and "amount progress state process
-- started_at"}; what is not here is an empty text.
local entry = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'balance', 'held')
local found = {entry[1] or '', entry[2] or '', entry[3] or '', entry[4] or ''}
local all, before = redis.call('HGETALL', KEYS[2]), tonumber(ARGV[1])
for i = 1, #all, 2 do
  local head, started = string.match(all[i + 1], '^(%d+ %d+ %a %S+ (%d+)) ')
  if tonumber(started) < before then
    found[#found + 1] = all[i]
    found[#found + 1] = head
  end
end
return found
