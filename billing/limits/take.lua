-- Count a call of a key with limits, or refuse it and count nothing.
-- KEYS: buckets, leases. ARGV: event id, process, longest call (ms), limits per minute of requests and
-- of tokens, limit of calls at once (-1: none), tokens to take.
-- Levels are in sixty-thousandths, as in billing/limits/bucket.py. Answers {0 or 1, time (ms), level
-- of requests, level of tokens, calls running, their processes if these are too many}; a level that
-- is not limited is ''. Time is this server's.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local requests_limit, tokens_limit = tonumber(ARGV[4]), tonumber(ARGV[5])
local calls_limit, tokens = tonumber(ARGV[6]), tonumber(ARGV[7])
local bucket = redis.call('HMGET', KEYS[1], 'requests', 'requests_at', 'tokens', 'tokens_at')

local function refill(level, at, limit)
  local full = limit * 60000
  if not level then return full, now end
  level, at = math.min(tonumber(level), full), tonumber(at)
  if at > now + 60000 then return full, now end
  local elapsed = math.max(0, now - at)
  -- Where the product may not be exact, the bucket is full.
  if elapsed >= math.ceil((full - level) / limit) then level = full else level = level + elapsed * limit end
  return level, math.max(now, at)
end

local function text(number) return string.format('%.0f', number) end

local requests, requests_at, tokens_level, tokens_at = '', now, '', now
local ok = 1
if requests_limit > 0 then
  requests, requests_at = refill(bucket[1], bucket[2], requests_limit)
  if requests < 60000 then ok = 0 end
end
if tokens_limit > 0 then
  tokens_level, tokens_at = refill(bucket[3], bucket[4], tokens_limit)
  if tokens_level < tokens * 60000 then ok = 0 end
end

local running, processes = redis.call('HLEN', KEYS[2]), {}
if (calls_limit >= 0 and running >= calls_limit) or running % 1000 == 999 then
  -- Each lease is 'until tokens process'.
  local all, seen = redis.call('HGETALL', KEYS[2]), {}
  for i = 1, #all, 2 do
    local until_at, process = string.match(all[i + 1], '^(%d+) %d+ (.*)$')
    if tonumber(until_at) <= now then
      redis.call('HDEL', KEYS[2], all[i])
      running = running - 1
    elseif not seen[process] then
      seen[process] = true
      processes[#processes + 1] = process
    end
  end
end
if calls_limit >= 0 and running >= calls_limit then ok = 0 else processes = {} end

if ok == 1 then
  local longest = 0
  if requests_limit > 0 then
    requests = requests - 60000
    redis.call('HSET', KEYS[1], 'requests', text(requests), 'requests_at', text(requests_at))
    longest = (requests_limit * 60000 - requests) / requests_limit
  end
  if tokens_limit > 0 then
    tokens_level = tokens_level - tokens * 60000
    redis.call('HSET', KEYS[1], 'tokens', text(tokens_level), 'tokens_at', text(tokens_at))
    longest = math.max(longest, (tokens_limit * 60000 - tokens_level) / tokens_limit)
  end
  -- A full bucket is as good as none.
  if longest > 0 then redis.call('PEXPIRE', KEYS[1], text(math.ceil(longest) + 60000)) end
  local held = 0
  if tokens_limit > 0 then held = tokens end
  redis.call('HSET', KEYS[2], ARGV[1],
    text(now + tonumber(ARGV[3])) .. ' ' .. text(held) .. ' ' .. ARGV[2])
  redis.call('PEXPIRE', KEYS[2], text(tonumber(ARGV[3]) + 60000))
end
if requests ~= '' then requests = text(requests) end
if tokens_level ~= '' then tokens_level = text(tokens_level) end
return {ok, now, requests, tokens_level, running, processes}
