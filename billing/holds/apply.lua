-- The word of a settlement: balance and seq if they are newer, ids always. Makes no account.
-- KEYS: account, holds. ARGV: epoch, balance, seq, number of finals, the finals' ids, then of each
-- estimate its id and residual.
-- Answers the seq known here; -1 the account is not here, -2 it is of a later epoch.
local entry = redis.call('HMGET', KEYS[1], 'epoch', 'balance', 'seq', 'next_seq', 'held')
if not entry[1] or tonumber(entry[1]) < tonumber(ARGV[1]) then return -1 end
if entry[1] ~= ARGV[1] then return -2 end
local seq, given = tonumber(entry[3] or entry[4] or '-1'), tonumber(ARGV[3])
if given > seq then
  seq = given
  if entry[2] then
    redis.call('HSET', KEYS[1], 'balance', ARGV[2], 'seq', ARGV[3])
  else  -- its holds are here before its balance: load takes the newer one
    redis.call('HSET', KEYS[1], 'next_balance', ARGV[2], 'next_seq', ARGV[3])
  end
end
local freed, finals = 0, 4 + tonumber(ARGV[4])
for i = 5, finals do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known then
    freed = freed + tonumber(string.match(known, '^%d+'))
    redis.call('HDEL', KEYS[2], ARGV[i])
  end
end
for i = finals + 1, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known then
    local text, progress, rest = string.match(known, '^(%d+) (%d+) %a( .*)$')
    local amount = tonumber(text)
    local residual = math.min(amount, tonumber(ARGV[i + 1]))
    freed = freed + amount - residual
    redis.call('HSET', KEYS[2], ARGV[i], string.format('%.0f %s r', residual, progress) .. rest)
  end
end
if freed == 0 then return seq end
local held = tonumber(entry[5])
if held >= 9007199254740991 then  -- saturated: only the holds themselves know
  held, freed = 0, 0
  for _, known in ipairs(redis.call('HVALS', KEYS[2])) do
    held = held + tonumber(string.match(known, '^%d+'))
  end
end
held = math.min(math.max(held - freed, 0), 9007199254740991)
redis.call('HSET', KEYS[1], 'held', string.format('%.0f', held))
return seq
