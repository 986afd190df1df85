-- Note the progress of an account's running calls; the larger amount wins, and what is gone stays gone.
-- KEYS: account, holds. ARGV: epoch, then for each hold its id, amount, progress.
-- Answers 0; -1 the account is not here, -2 it is of a later epoch.
local entry = redis.call('HMGET', KEYS[1], 'epoch', 'held')
if not entry[1] or tonumber(entry[1]) < tonumber(ARGV[1]) then return -1 end
if entry[1] ~= ARGV[1] then return -2 end
local held = tonumber(entry[2])
for i = 2, #ARGV, 3 do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known then
    local amount, progress, state, rest = string.match(known, '^(%d+) (%d+) (%a)( .*)$')
    if state == 'l' then
      local was, more = tonumber(amount), tonumber(ARGV[i + 1])
      local new = math.max(was, more)
      local spent = math.max(tonumber(progress), tonumber(ARGV[i + 2]))
      redis.call('HSET', KEYS[2], ARGV[i], string.format('%.0f %.0f l', new, spent) .. rest)
      held = held + new - was
    end
  end
end
redis.call('HSET', KEYS[1], 'held', string.format('%.0f', math.min(held, 9007199254740991)))
return 0
