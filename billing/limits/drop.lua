-- Drop the leases of processes that are over. KEYS: leases. ARGV: the processes.
-- Answers how many there were.
local gone, dropped = {}, 0
for _, process in ipairs(ARGV) do gone[process] = true end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  if gone[string.match(all[i + 1], '^%d+ %d+ (.*)$')] then
    redis.call('HDEL', KEYS[1], all[i])
    dropped = dropped + 1
  end
end
return dropped
