"""Requests, providers and clients that would make a call cheaper than it is, or others pay for it."""

import json
import select

import pytest

from tests.support.gateway import Charge, GatewayProcess, TestAccount, until
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    Gate,
    ScriptedProvider,
    completion,
    delta,
    event,
    json_answer,
    json_bytes,
    stream_answer,
    usage,
    usage_event,
)
from tests.support.rawhttp import chat, request

FINISH = event(delta(None, finish="stop"))
WORDS = event(delta("word " * 40))
# What no provider has to mind, and what our own count of the input has to survive.
ODD_PARTS = [
    [{"type": "text", "text": 5}],
    [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": "u", "text": ["x"]}],
]


def only_charge(gateway: GatewayProcess, account: TestAccount) -> Charge:
    [charge] = gateway.settle(account.id, 1)
    return charge


@pytest.mark.parametrize("parts", ODD_PARTS)
def test_text_of_a_wrong_type_does_not_keep_a_call_from_being_charged(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    parts: list[dict[str, object]],
) -> None:
    script = provider.script(STREAM_HEAD, WORDS, FINISH, DONE + LAST_CHUNK)
    body = chat(stream=True, messages=[{"role": "user", "content": parts}], x_script=script)
    assert gateway.call(body, account.key).events[-1] == "[DONE]"
    charge = only_charge(gateway, account)
    assert charge.quality == "estimated"
    assert charge.output > 20


def test_one_calls_input_does_not_cost_the_others_their_progress(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    other = gateway.account()
    gate = Gate()
    script = provider.script(STREAM_HEAD, WORDS, gate, FINISH, usage_event(), DONE + LAST_CHUNK)
    odd = [{"role": "user", "content": ODD_PARTS[0]}]
    with gateway.connect() as first, gateway.connect() as second:
        first.send(request(body=chat(stream=True, messages=odd, x_script=script), key=account.key))
        first.read_until(b"word")
        second.send(request(body=chat(stream=True, x_script=script), key=other.key))
        second.read_until(b"word")

        def noted() -> bool | None:
            with gateway.books() as books:
                return all(books.progress(each.id) for each in (account, other)) or None

        until(noted, "the progress of both calls to be noted")
        gate.open()
        for client in (first, second):
            client.read_until(b"[DONE]")
    gateway.settle(account.id, 1)
    gateway.settle(other.id, 1)


@pytest.mark.parametrize("tier", ["priority", "flex", "Default", ""])
def test_client_does_not_choose_a_tier_that_nobody_priced(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount, tier: str
) -> None:
    script = provider.script(*json_answer())
    reply = gateway.call(chat(service_tier=tier, x_script=script), account.key)
    assert (reply.status, reply.code) == (400, "unbounded_cost")
    assert b'"param":"service_tier"' in reply.body
    assert provider.calls(script) == []


@pytest.mark.parametrize("tier", [None, "auto", "default"])
def test_plain_tiers_pass(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount, tier: str | None
) -> None:
    script = provider.script(*json_answer())
    assert gateway.call(chat(service_tier=tier, x_script=script), account.key).status == 200
    assert provider.wait_call(script).json.get("service_tier") == tier


REFUSAL = json_bytes(
    {"error": {"message": "Unknown parameter: 'stream_options.x'", "type": "t", "code": "c"}},
    status=400,
)


@pytest.mark.parametrize("options", [{"include_usage": True, "x": 1}, {"x": 1}])
def test_a_clients_wrong_option_does_not_end_the_reports_for_all(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    options: dict[str, object],
) -> None:
    refusing = provider.script(REFUSAL)
    body = chat(stream=True, stream_options=options, x_script=refusing)
    assert gateway.call(body, account.key).status == 400
    assert len(provider.calls(refusing)) == 1
    script = provider.script(*stream_answer())
    gateway.call(chat(stream=True, x_script=script), account.key)
    assert provider.wait_call(script).json["stream_options"] == {"include_usage": True}


def test_a_refusal_that_stays_is_no_sign_that_the_provider_minds_the_option(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    refusing = provider.script(REFUSAL)  # with the option and without
    assert gateway.call(chat(stream=True, x_script=refusing), account.key).status == 400
    assert [("stream_options" in seen.json) for seen in provider.calls(refusing)] == [True, False]
    script = provider.script(*stream_answer())
    gateway.call(chat(stream=True, x_script=script), account.key)
    assert "stream_options" in provider.wait_call(script).json


@pytest.mark.parametrize(
    "member", ["models", "fallbacks", "n_predict", "N_Predict", "max_new_tokens", "deferred"]
)
def test_members_that_undo_the_ceiling_are_refused(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount, member: str
) -> None:
    script = provider.script(*json_answer())
    reply = gateway.call(chat(**{member: [1], "x_script": script}), account.key)
    assert (reply.status, reply.code) == (400, "unbounded_cost")
    assert provider.calls(script) == []


def test_leaving_after_an_early_report_pays_what_came_after_it(
    gateway: GatewayProcess, provider: ScriptedProvider
) -> None:
    # Some report in the first event what the prompt cost, and one token of output.
    account = gateway.account(scene="stopped")
    first = event({**delta("a"), "usage": usage(100, 1)})
    gate = Gate()
    script = provider.script(STREAM_HEAD, first, *[WORDS] * 10, gate, DONE + LAST_CHUNK)
    with gateway.connect() as client:
        client.send(request(body=chat(stream=True, x_script=script), key=account.key))
        for _ in range(10):
            client.read_until(b"word ")
            client.read_until(b"\n\n")
    charge = only_charge(gateway, account)
    assert charge.quality == "partial"
    assert charge.input == 100
    assert 200 < charge.output < 800  # 400 words
    gate.open()


def test_no_output_is_not_believed_of_an_answer_with_content(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(*json_answer(completion("word " * 40, usage(100, 0))))
    assert gateway.call(chat(x_script=script), account.key).status == 200
    charge = only_charge(gateway, account)
    assert charge.quality == "suspicious"
    assert charge.output > 20


def test_ignored_output_limit_is_paid_as_far_as_it_was_seen(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    # A provider that is said to keep to the limit, and knows the field under another name.
    script = provider.script(*json_answer(completion("word " * 400, usage(10, 400))))
    assert gateway.call(chat(max_tokens=1, x_script=script), account.key).status == 200
    charge = only_charge(gateway, account)
    # 10 x 2 + 400 x 8, some ten times the hold.
    assert (charge.amount, charge.quality) == (3220, "exact")


def test_done_without_an_end_of_the_body_is_a_whole_answer(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(STREAM_HEAD, WORDS, FINISH, usage_event(usage(100, 20)), DONE, Gate())
    reply = gateway.call(chat(model="m-hasty", stream=True, x_script=script), account.key)
    assert reply.events[-1] == "[DONE]"
    charge = only_charge(gateway, account)
    assert (charge.amount, charge.quality) == (360, "exact")


def test_burst_of_a_provider_without_limit_does_not_cut_off_who_can_pay(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    burst = b"".join([STREAM_HEAD, WORDS * 200, FINISH, usage_event(usage(10, 8000)), DONE])
    script = provider.script(burst + LAST_CHUNK)
    reply = gateway.call(
        chat(model="m-lax", stream=True, max_tokens=10, x_script=script), account.key
    )
    assert reply.events[-1] == "[DONE]"
    assert '"stop"' in reply.events[-2]
    assert only_charge(gateway, account).amount == 10 * 2 + 8000 * 8


def test_grace_is_lent_not_given(gateway: GatewayProcess, provider: ScriptedProvider) -> None:
    # 1 credit of grace, and a stream that breaks off and never reports.
    account = gateway.account(3000, scene="graceful", scenes=["graceful"])
    script = provider.script(STREAM_HEAD, *[WORDS] * 100, Close())
    body = chat(model="m-lax", stream=True, max_tokens=10, x_script=script)
    assert gateway.call(body, account.key).body.count(b"word") == 4000
    charge = only_charge(gateway, account)
    assert charge.output > 2000  # 4,000 words
    assert charge.amount == 2 * charge.input + 8 * charge.output
    with gateway.books() as books:
        assert books.balance(account.id) == 3000 - charge.amount < 0
    gateway.admin(
        "grants",
        {"account": account.id, "event_id": "even", "amount_micro_credits": charge.amount},
    )


def test_answers_do_not_pile_up_for_a_client_that_reads_none(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    script = provider.script(json_bytes(completion("x" * 25_000_000, usage(100, 20))))
    later = provider.script(*json_answer())
    with gateway.connect() as client:
        client.send(request(body=chat(x_script=script), key=account.key))
        select.select([client], [], [], 15)  # its answer has begun to come
        client.send(request(body=chat(x_script=later), key=account.key))
        # Another call shows that the gateway had time for the second request, and left it alone.
        assert gateway.call(chat(), account.key).status == 200
        gateway.settle(account.id, 2)
        assert provider.calls(later) == []
        assert len(client.read_reply().body) > 25_000_000
        assert client.read_reply().status == 200
    gateway.settle(account.id, 3)


def test_odd_json_of_a_provider_never_ends_a_call_unresolved(
    gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount
) -> None:
    odd = [
        '{"prompt_tokens":1e400,"completion_tokens":1}',
        '{"prompt_tokens":NaN,"completion_tokens":1}',
        f'{{"prompt_tokens":{"9" * 5000},"completion_tokens":1}}',
        '{"prompt_tokens":"12","completion_tokens":1}',
        '{"prompt_tokens":true,"completion_tokens":1}',
        '{"prompt_tokens":9007199254740993,"completion_tokens":1}',
        f'{{"a":{"[" * 900}{"]" * 900},"prompt_tokens":-1,"completion_tokens":1}}',
        "[1]",
    ]
    for used in odd:
        script = provider.script(
            STREAM_HEAD, WORDS, event(f'{{"choices":[],"usage":{used}}}'), DONE + LAST_CHUNK
        )
        reply = gateway.call(chat(stream=True, x_script=script), account.key)
        assert reply.events[-1] == "[DONE]", used[:60]
    charges = gateway.settle(account.id, len(odd))
    assert {charge.quality for charge in charges} == {"suspicious", "estimated"}
    assert all(charge.output > 20 for charge in charges)
    assert json.dumps(odd[0]) not in gateway.output
