"""What past calls make one expect of the next, on both engines."""

import pytest

from billing.shop.history import HISTORY_DAYS, QUARTERS_MAX, History, history_of
from pricing_rules.usage import Usage
from tests.billing.shop.test_consumption import QUARTER, changed
from tests.support.money import T0, cancelled, charge
from tests.support.shop import Shop

DAY = 86_400_000


async def ask(shop: Shop, **fields: str) -> History | None:
    wanted = {"account": "ada", "scene": "agent", "provider": "echo", "model": "mini-1"} | fields
    return await history_of(shop.database, now_ms=T0, **wanted)


async def test_calls_of_the_kind_are_summed(shop: Shop) -> None:
    """Each has 10 of input, 2 cached, 5 of output, 1 of reasoning."""
    assert await ask(shop) is None
    for at in (T0, T0, T0 - 3 * DAY, T0 - (HISTORY_DAYS - 1) * DAY, T0 - (HISTORY_DAYS + 1) * DAY):
        await shop.hot.record(changed(charge(shop.new_id(), 1, account="ada"), started_at=at))
    for fields in ({"scene": "chat"}, {"provider": "other"}, {"model_sent": "maxi"}):
        await shop.hot.record(changed(charge(shop.new_id(), 1, account="ada"), **fields))
    await shop.hot.cancel(cancelled(shop.new_id(), account="ada", reason="upstream_error"))
    await shop.hot.settle_pending(100)
    usage = Usage(input=40, cached_input=8, output=20, reasoning=4)
    assert await ask(shop) == History(calls=4, usage=usage)
    assert await ask(shop, account="bob") is None
    other = await ask(shop, model="maxi")
    assert other is not None
    assert other.calls == 1


async def test_only_the_newest_quarters_are_looked_at(shop: Shop) -> None:
    row = {
        "account": "ada", "key_id": "k", "app": "", "scene": "agent", "provider": "echo",
        "model": "mini-1", "calls": 1, "output": 3,
    }  # fmt: skip
    columns, values = ", ".join(row), ", ".join(f":{name}" for name in row)
    insert = f"INSERT INTO usage_quarters (bucket_at, {columns}) VALUES (:bucket_at, {values})"
    for number in range(QUARTERS_MAX + 2):
        at = T0 - T0 % QUARTER - number * QUARTER
        await shop.change(insert, bucket_at=at, **row)
    found = await ask(shop)
    assert found is not None
    assert (found.calls, found.usage.output) == (QUARTERS_MAX, 3 * QUARTERS_MAX)
    await shop.change("DELETE FROM usage_quarters")


@pytest.mark.parametrize(
    ("usage", "calls", "asked", "expected"),
    [
        # 7 of output over 2 calls: 4 each, rounded up
        (Usage(input=9, output=7), 2, (100, 1, 50), Usage(input=100, output=4)),
        (Usage(input=9, output=7), 2, (100, 3, 50), Usage(input=100, output=12)),
        (Usage(input=9, output=7), 2, (100, 3, 10), Usage(input=100, output=10)),
        # a third of the input cached, half of the output thoughts; the rest goes to the plain class
        (
            Usage(input=20, cached_input=10, output=5, reasoning=5),
            1,
            (100, 1, 9),
            Usage(input=67, cached_input=33, output=5, reasoning=4),
        ),
        (Usage(), 3, (100, 1, 50), Usage(input=100)),
        (Usage(cached_input=5, reasoning=5), 5, (7, 1, 50), Usage(cached_input=7, reasoning=1)),
        (Usage(input=5, output=5), 5, (0, 1, 50), Usage(output=1)),
    ],
)
def test_a_call_is_expected_to_be_made_up_as_they_were(
    usage: Usage, calls: int, asked: tuple[int, int, int], expected: Usage
) -> None:
    assert History(calls=calls, usage=usage).expected(*asked) == expected
