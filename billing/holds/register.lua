-- A process says which of its calls hold credit of an account: after a loss, or a time without Redis.
-- KEYS: account, holds. ARGV: epoch, what may be made where it is missing (0 nothing, 1 holds, 2 the
-- account too), then of each hold its id, amount, progress, process, started_at, context.
-- Answers how many were not here; -1 the account is not here and may not be made, -2 it is of a later
-- epoch. An account of an earlier epoch keeps its holds and loses its balance, which load brings anew.
local epoch, make = redis.call('HGET', KEYS[1], 'epoch'), tonumber(ARGV[2])
if epoch and tonumber(epoch) > tonumber(ARGV[1]) then return -2 end
if epoch ~= ARGV[1] then
  if make < 2 then return -1 end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[1])
end
local missing = 0
for i = 3, #ARGV, 6 do
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
  if (known or make > 0) and (state == 'l' or state == 'e') then
    redis.call('HSET', KEYS[2], ARGV[i], string.format('%.0f %.0f l', amount, progress) .. tail)
  end
end
local held = 0
for _, known in ipairs(redis.call('HVALS', KEYS[2])) do
  held = held + tonumber(string.match(known, '^%d+'))
end
redis.call('HSET', KEYS[1], 'held', string.format('%.0f', math.min(held, 9007199254740991)))
return missing
