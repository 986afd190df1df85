-- Raise a hold to a total, whole or not at all; never lower it.
-- KEYS: account, holds. ARGV: epoch, hold id, total, whether the account is suspended (0 or 1).
-- Answers the amount held; -1, -2, -3 as reserve; {balance, held} if there is not enough, and {} if
-- there is no such hold, or it is no longer its owner's.
local entry = redis.call('HMGET', KEYS[1], 'epoch', 'balance', 'held')
if not entry[1] or tonumber(entry[1]) < tonumber(ARGV[1]) then return -1 end
if entry[1] ~= ARGV[1] then return -2 end
local known = redis.call('HGET', KEYS[2], ARGV[2])
if not known then return {} end
local text, state, rest = string.match(known, '^(%d+) %d+ (%a)( .*)$')
local amount, total = tonumber(text), tonumber(ARGV[3])
if total <= amount then return amount end
if state ~= 'l' then return {} end
if not entry[2] then return -3 end
local balance, held = tonumber(entry[2]), tonumber(entry[3])
if ARGV[4] == '1' or balance - held < total - amount then return {balance, held} end
redis.call('HSET', KEYS[2], ARGV[2],
  string.format('%.0f', total) .. string.sub(known, #text + 1))
redis.call('HSET', KEYS[1], 'held', string.format('%.0f', held + total - amount))
return total
