-- Hold min(wanted, balance - held) for a call, if that is at least its minimum.
-- KEYS: account, holds. ARGV: epoch, hold id, minimum, wanted, process, started_at, context.
-- Answers the amount granted; -1 the account is not here, -2 it is of a later epoch, -3 it is here
-- but its balance is not; {balance, held} if there is not enough.
local entry = redis.call('HMGET', KEYS[1], 'epoch', 'balance', 'held')
if not entry[1] or tonumber(entry[1]) < tonumber(ARGV[1]) then return -1 end
if entry[1] ~= ARGV[1] then return -2 end
if not entry[2] then return -3 end
local known = redis.call('HGET', KEYS[2], ARGV[2])
if known then return tonumber(string.match(known, '^%d+')) end
local balance, held = tonumber(entry[2]), tonumber(entry[3])
local available, grant = balance - held, tonumber(ARGV[4])
if available < tonumber(ARGV[3]) then return {balance, held} end
if available < grant then grant = available end
redis.call('HSET', KEYS[2], ARGV[2],
  string.format('%.0f 0 l ', grant) .. ARGV[5] .. ' ' .. ARGV[6] .. ' ' .. ARGV[7])
redis.call('HSET', KEYS[1], 'held', string.format('%.0f', held + grant))
return grant
