-- End a call that was counted; once, as its lease is there once.
-- KEYS: buckets, leases. ARGV: event id, limits per minute of requests and of tokens (-1: none),
-- tokens used, or -1 for a call that did not begin: then its request is given back too.
-- Answers 1 if it ended now.
local lease = redis.call('HGET', KEYS[2], ARGV[1])
if not lease then return 0 end
redis.call('HDEL', KEYS[2], ARGV[1])
local held = tonumber(string.match(lease, '^%d+ (%d+) '))
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local requests_limit, tokens_limit = tonumber(ARGV[2]), tonumber(ARGV[3])
local used = tonumber(ARGV[4])
local bucket = redis.call('HMGET', KEYS[1], 'requests', 'requests_at', 'tokens', 'tokens_at')
local longest = 0

local function move(name, level, at, limit, amount)
  local full = limit * 60000
  at = tonumber(at) or now
  level = math.min(tonumber(level) or full, full)
  if at > now + 60000 then level, at = full, now end
  local elapsed = math.max(0, now - at)
  if elapsed >= math.ceil((full - level) / limit) then level = full else level = level + elapsed * limit end
  level = math.max(-1e15, math.min(level + amount * 60000, full))
  redis.call('HSET', KEYS[1], name, string.format('%.0f', level),
    name .. '_at', string.format('%.0f', math.max(now, at)))
  longest = math.max(longest, (full - level) / limit)
end

if tokens_limit > 0 then
  move('tokens', bucket[3], bucket[4], tokens_limit, held - math.max(used, 0))
end
if used < 0 and requests_limit > 0 then
  move('requests', bucket[1], bucket[2], requests_limit, 1)
end
-- The requests may still be filling: never sooner than what was set for them.
if longest > 0 then
  local left = redis.call('PTTL', KEYS[1])
  if math.ceil(longest) + 60000 > left then
    redis.call('PEXPIRE', KEYS[1], string.format('%.0f', math.ceil(longest) + 60000))
  end
end
return 1
