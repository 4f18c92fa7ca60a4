"""Quota state in Valkey or Redis: exact over any number of machines, by the server's own clock.

Keys of a tenant share a hash slot: `fovea:{TENANT}:quota` (hash: level and time of each bucket), `:leases` (sorted set
by expiry), `:usd:MONTH` (nano-dollars).  The scripts are `serving.quota.decide` and `give_back` in Lua.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.errors import StoreDown
from serving.quota import RATES, Ask, Verdict
from serving.valkey import connect, guarded

# KEYS: quota, leases, usd.  ARGV: now ('' for the server's time), concurrent, lease, lease_s, budget, nano cost, and
# for each rate: name, limit, cost ('' for none).  Returns {names}, {waits}, {left}, numbers as text.
TAKE = """
local now = tonumber(ARGV[1])
if not now then local t = redis.call('TIME'); now = t[1] + t[2] / 1e6 end
local names, waits, left, levels = {}, {}, {}, {}
for i = 7, #ARGV, 3 do
  local name, limit, cost = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  if limit then
    local kept = redis.call('HMGET', KEYS[1], name, name .. ':at')
    local level, at = tonumber(kept[1]) or limit, tonumber(kept[2]) or now
    level = math.min(limit, level + math.max(0, now - at) * limit / 60)
    levels[name] = level
    redis.call('HSET', KEYS[1], name, string.format('%.17g', level), name .. ':at', string.format('%.17g', now))
    local need = math.min(cost, limit)
    if level < need then
      names[#names + 1] = name .. '_per_minute'
      waits[#waits + 1] = string.format('%.17g', (need - level) * 60 / limit)
    end
    left[#left + 1] = string.format('%.17g', level)
  else
    left[#left + 1] = ''
  end
end
local concurrent, lease_s = tonumber(ARGV[2]), tonumber(ARGV[4])
if concurrent then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.17g', now))
  redis.call('ZREMRANGEBYSCORE', KEYS[2], string.format('(%.17g', now + 2 * lease_s), '+inf')
  if redis.call('ZCARD', KEYS[2]) >= concurrent then
    names[#names + 1] = 'concurrent'; waits[#waits + 1] = ''
  end
end
local budget, nano = tonumber(ARGV[5]), tonumber(ARGV[6])
if budget and (tonumber(redis.call('GET', KEYS[3])) or 0) + nano > budget then
  names[#names + 1] = 'usd_per_month'; waits[#waits + 1] = ''
end
if #names == 0 then
  local place = 0
  for i = 7, #ARGV, 3 do
    place = place + 1
    local name = ARGV[i]
    if levels[name] then
      local level = levels[name] - tonumber(ARGV[i + 2])
      left[place] = string.format('%.17g', level)
      redis.call('HSET', KEYS[1], name, left[place])
    end
  end
  redis.call('EXPIRE', KEYS[1], 86400)
  if concurrent then
    redis.call('ZADD', KEYS[2], string.format('%.17g', now + lease_s), ARGV[3])
    redis.call('EXPIRE', KEYS[2], math.ceil(2 * lease_s))
  end
  if budget then
    redis.call('INCRBY', KEYS[3], ARGV[6])
    redis.call('EXPIRE', KEYS[3], 5356800)
  end
end
return {names, waits, left}
"""

# KEYS as above.  ARGV: lease, nano back, and for each rate: name, limit, units back.
SETTLE = """
redis.call('ZREM', KEYS[2], ARGV[1])
for i = 3, #ARGV, 3 do
  local limit, level = tonumber(ARGV[i + 1]), tonumber(redis.call('HGET', KEYS[1], ARGV[i]))
  if limit and level then
    redis.call('HSET', KEYS[1], ARGV[i], string.format('%.17g', math.min(limit, level + tonumber(ARGV[i + 2]))))
  end
end
if tonumber(ARGV[2]) and redis.call('EXISTS', KEYS[3]) == 1 then redis.call('DECRBY', KEYS[3], ARGV[2]) end
"""

# KEYS: leases of one tenant.  ARGV: lease_s, leases.
RENEW = """
local t = redis.call('TIME')
local ends = string.format('%.17g', t[1] + t[2] / 1e6 + tonumber(ARGV[1]))
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', ends, ARGV[i]) end
redis.call('EXPIRE', KEYS[1], math.ceil(2 * ARGV[1]))
"""


class ValkeyQuota:
    """See `serving.quota.QuotaStore`."""

    def __init__(self, url: str):
        self.url, self.client = url, connect(url)
        self._take, self._settle, self._renew = (self.client.register_script(text) for text in (TAKE, SETTLE, RENEW))

    async def take(self, ask: Ask, now: float | None = None) -> Verdict:
        """See `QuotaStore`; `now` takes the place of the server's clock in tests."""
        limit, cost = ask.budget or ("", 0)
        arguments: list[Any] = ["" if now is None else repr(now), _text(ask.concurrent), ask.lease, ask.lease_s]
        arguments += [limit, cost]
        for name, (most, units) in zip(RATES, ask.rates, strict=True):
            arguments += [name, _text(most), units]
        async with guarded(self.url):
            answer = await self._take(keys=_keys(ask), args=arguments)
        try:
            names, waits, left = answer
            return Verdict(tuple(name.decode() for name in names), _numbers(waits), _numbers(left))
        except (TypeError, ValueError) as error:
            raise StoreDown("the server's answer is not understood") from error

    async def settle(self, ask: Ask, back: Sequence[int], nano: int) -> None:
        """See `QuotaStore`."""
        arguments: list[Any] = [ask.lease, "" if ask.budget is None else nano]
        for name, (most, _), units in zip(RATES, ask.rates, back, strict=True):
            arguments += [name, _text(most), units]
        async with guarded(self.url):
            await self._settle(keys=_keys(ask), args=arguments)

    async def renew(self, asks: Sequence[Ask]) -> None:
        """See `QuotaStore`."""
        tenants: dict[str, list[Ask]] = {}
        for ask in asks:
            tenants.setdefault(ask.tenant, []).append(ask)
        async with guarded(self.url):
            for group in tenants.values():
                leases = [ask.lease for ask in group]
                await self._renew(keys=[_keys(group[0])[1]], args=[group[0].lease_s, *leases])

    async def close(self) -> None:
        """See `QuotaStore`."""
        await self.client.aclose()


def _keys(ask: Ask) -> list[str]:
    stem = f"fovea:{{{ask.tenant}}}"
    return [f"{stem}:quota", f"{stem}:leases", f"{stem}:usd:{ask.month}"]


def _text(number: int | None) -> str | int:
    return "" if number is None else number


def _numbers(texts: Sequence[bytes]) -> tuple[float | None, ...]:
    return tuple(float(text) if text else None for text in texts)
