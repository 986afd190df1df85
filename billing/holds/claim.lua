-- A sweeper takes the holds of dead processes: from now on nobody raises them.
-- KEYS: account, holds. ARGV: hold ids. Answers of each that is still there its id and value.
local claimed = {}
for i = 1, #ARGV do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known then
    local head, state, rest = string.match(known, '^(%d+ %d+ )(%a)( .*)$')
    if state == 'l' then
      known, state = head .. 's' .. rest, 's'
      redis.call('HSET', KEYS[2], ARGV[i], known)
    end
    if state == 's' then
      claimed[#claimed + 1] = ARGV[i]
      claimed[#claimed + 1] = known
    end
  end
end
return claimed
