-- Leave a mark on an account that is about to be read from the ledger: from now on a settlement's word
-- is noted here, and if the account is lost meanwhile, the mark is as well.
-- KEYS: account, holds. ARGV: epoch, mark, whether the account may be made (0 or 1): by the first one
-- to bring it in during this epoch alone.
-- Answers 1 the account was here in this epoch, 0 it was not; 2 it is loaded already; -1 it is not here
-- and may not be made; -2 it is of a later epoch. An account of an earlier epoch keeps its holds and
-- loses its balance.
local entry = redis.call('HMGET', KEYS[1], 'epoch', 'balance')
if entry[1] and tonumber(entry[1]) > tonumber(ARGV[1]) then return -2 end
local here = 0
if entry[1] == ARGV[1] then
  if entry[2] then return 2 end
  here = 1
elseif ARGV[3] ~= '1' then
  return -1
else
  local held = 0
  for _, known in ipairs(redis.call('HVALS', KEYS[2])) do
    held = held + tonumber(string.match(known, '^%d+'))
  end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1],
    'held', string.format('%.0f', math.min(held, 9007199254740991)))
end
redis.call('HSET', KEYS[1], 'mark', ARGV[2])
return here
