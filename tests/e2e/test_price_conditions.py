"""Hours, service tiers, tiers by input and windows reach the charge: one gateway, an own price book."""

from collections.abc import Iterator

import pytest

from tests.support.gateway import GatewayProcess, TestAccount
from tests.support.provider import ScriptedProvider, completion, json_answer
from tests.support.rawhttp import chat

# A token of input costs 2 micro-credits, one of output 8; at every hour of the week three times that.
PRICES = """
[book]
name = "conditions"
currency = "USD"
credits_per_unit = "1"

[[rule]]
id = "all-day"
description = "made up for the tests"
provider = "*"
model = "m-*"
input = "2"
output = "8"
tiers = [{ from_input_tokens = 1000, input = "4", output = "10" }]
hours = [{ from = "00:00", to = "24:00", multiply = "3" }]
service_tiers = { flex = "0.5" }

[[rule]]
id = "over"
description = "made up for the tests: it ended long ago, or nothing would be charged"
provider = "*"
model = "m-*"
priority = 9
valid_until = 2020-01-01T00:00:00Z
free = true
"""


@pytest.fixture(scope="module")
def gateway(
    provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    with GatewayProcess(tmp_path_factory.mktemp("conditions"), provider.base_url) as gateway:
        (gateway.folder / "prices.toml").write_text(PRICES)
        gateway.start()
        yield gateway
        gateway.audit()
        assert gateway.stop() == 0, gateway.output


@pytest.mark.parametrize(
    ("tier", "prompt", "amount"),
    [
        (None, 100, 840),  # (100 x 2 + 10 x 8) x 3
        ("default", 100, 840),
        ("flex", 100, 420),
        (None, 999, 6_234),  # (999 x 2 + 10 x 8) x 3
        (None, 1000, 12_300),  # (1000 x 4 + 10 x 10) x 3
    ],
)
def test_a_call_costs_what_its_conditions_say(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    tier: str | None,
    prompt: int,
    amount: int,
) -> None:
    usage: dict[str, object] = {
        "prompt_tokens": prompt,
        "completion_tokens": 10,
        "total_tokens": prompt + 10,
    }
    script = provider.script(*json_answer(completion(used=usage)))
    text = "word " * 1000  # as long as what is reported
    messages = [{"role": "user", "content": text}]
    reply = gateway.call(chat(service_tier=tier, messages=messages, x_script=script), account.key)
    assert reply.status == 200, reply.body
    (charge,) = gateway.settle(account.id, 1)
    assert charge.amount == amount
    assert provider.wait_call(script).json.get("service_tier") == tier
    explained = gateway.get(f"/credit-store/charges/{charge.event_id}", account.key)
    assert b'"computed_micro_credits":%d' % amount in explained.body
    assert b'"why":"it held only until 2020-01-01T00:00:00Z"' in explained.body


def test_a_service_tier_without_a_price_is_refused(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(*json_answer())
    reply = gateway.call(chat(service_tier="priority", x_script=script), account.key)
    assert (reply.status, reply.code) == (400, "unbounded_cost")
    assert b"all-day lists no service tier of this name; it lists flex" in reply.body
    assert provider.calls(script) == []
