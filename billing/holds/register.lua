-- A process says which of its calls hold credit of an account: after a loss, or a time without Redis.
-- KEYS: account, holds. ARGV: epoch, then of each hold its id, amount, progress, process, started_at,
-- context. Answers how many were not here; -2 the account is of a later epoch.
-- An account of an earlier epoch keeps its holds and loses its balance, which load brings anew.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch and tonumber(epoch) > tonumber(ARGV[1]) then return -2 end
if epoch ~= ARGV[1] then
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
end
local missing = 0
for i = 2, #ARGV, 6 do
  local amount, progress = tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local tail = ' ' .. ARGV[i + 3] .. ' ' .. ARGV[i + 4] .. ' ' .. ARGV[i + 5]
  local known, state = redis.call('HGET', KEYS[2], ARGV[i]), 'l'
  if known then
    local was, spent
    was, spent, state = string.match(known, '^(%d+) (%d+) (%a)')
    amount, progress = math.max(amount, tonumber(was)), math.max(progress, tonumber(spent))
  else
    missing = missing + 1
  end
  -- A sweeper's word stands: the owner of such a hold ends its call with a final.
  if state == 'l' or state == 'e' then
    redis.call('HSET', KEYS[2], ARGV[i], string.format('%.0f %.0f l', amount, progress) .. tail)
  end
end
local held = 0
for _, known in ipairs(redis.call('HVALS', KEYS[2])) do
  held = held + tonumber(string.match(known, '^%d+'))
end
redis.call('HSET', KEYS[1], 'held', string.format('%.0f', math.min(held, 9007199254740991)))
return missing
