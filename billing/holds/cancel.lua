-- Drop holds of an account by id: nothing more is charged for these calls.
-- KEYS: account, holds. ARGV: hold ids. Answers how many there were.
local dropped, freed = 0, 0
for i = 1, #ARGV do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known then
    dropped, freed = dropped + 1, freed + tonumber(string.match(known, '^%d+'))
    redis.call('HDEL', KEYS[2], ARGV[i])
  end
end
if dropped == 0 or redis.call('EXISTS', KEYS[1]) == 0 then return dropped end
local held = tonumber(redis.call('HGET', KEYS[1], 'held') or '0')
if held >= 9007199254740991 then  -- saturated: only the holds themselves know
  held, freed = 0, 0
  for _, known in ipairs(redis.call('HVALS', KEYS[2])) do
    held = held + tonumber(string.match(known, '^%d+'))
  end
end
held = math.min(math.max(held - freed, 0), 9007199254740991)
redis.call('HSET', KEYS[1], 'held', string.format('%.0f', held))
return dropped
