"""For any mix of calls, what the ledger took is the price of what the provider reported."""

import contextlib
from dataclasses import dataclass

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.gateway import GatewayProcess
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    Close,
    ScriptedProvider,
    Step,
    completion,
    delta,
    event,
    json_answer,
    json_bytes,
    usage,
    usage_event,
)
from tests.support.rawhttp import chat, request


@dataclass(frozen=True)
class Planned:
    """A call: the model, how it is answered, and what the provider reports for it."""

    model: str
    shape: str
    prompt: int
    completion: int
    cached: int
    reasoning: int

    @property
    def used(self) -> dict[str, object]:
        return usage(self.prompt, self.completion, self.cached, self.reasoning)

    @property
    def price(self) -> int:
        """2 for input, 1 for cached input, 8 for output with its reasoning; m-fee: 1,000 a call."""
        if self.shape in ("refused", "cut_json") or self.model == "m-free":
            return 0
        fee = 1000 if self.model == "m-fee" else 0
        return fee + 2 * (self.prompt - self.cached) + self.cached + 8 * self.completion

    @property
    def charged(self) -> bool:
        return self.shape not in ("refused", "cut_json")

    @property
    def stream(self) -> bool:
        return self.shape.startswith("stream")

    def steps(self) -> list[Step]:
        words = [event(delta(word)) for word in ("some", " words")]
        finish = event(delta(None, finish="stop"))
        match self.shape:
            case "json":
                return json_answer(completion("some words", self.used))
            case "cut_json":
                return [json_bytes(completion("some words", self.used))[:-10], Close()]
            case "refused":
                return json_answer({"error": {"message": "no"}}, status=422)
            case "stream":
                return [STREAM_HEAD, *words, finish, usage_event(self.used), DONE + LAST_CHUNK]
            case "stream_usage_with_choices":
                last = delta(None, finish="stop")
                last["usage"] = self.used
                return [STREAM_HEAD, *words, event(last), DONE + LAST_CHUNK]
            case "stream_cumulative":
                first = delta("some")
                first["usage"] = usage(self.prompt, 0, self.cached)
                last = delta(None, finish="stop")
                last["usage"] = self.used
                return [STREAM_HEAD, event(first), words[1], event(last), DONE + LAST_CHUNK]
            case "stream_without_done":
                return [STREAM_HEAD, *words, finish, usage_event(self.used), LAST_CHUNK]
            case "stream_cut_after_usage":
                return [STREAM_HEAD, *words, finish, usage_event(self.used), Close()]
            case other:
                raise AssertionError(other)


SHAPES = (
    "json",
    "cut_json",
    "refused",
    "stream",
    "stream_usage_with_choices",
    "stream_cumulative",
    "stream_without_done",
    "stream_cut_after_usage",
)


@st.composite
def planned(draw: st.DrawFn) -> Planned:
    # Within what a call of this size can hold: nothing here is implausible.
    prompt = draw(st.integers(1, 120))
    completed = draw(st.integers(1, 1000))
    return Planned(
        model=draw(st.sampled_from(["m-small", "m-fee", "m-free"])),
        shape=draw(st.sampled_from(SHAPES)),
        prompt=prompt,
        completion=completed,
        cached=draw(st.integers(0, prompt)),
        reasoning=draw(st.integers(0, completed)),
    )


@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(calls=st.lists(planned(), min_size=1, max_size=20))
def test_entries_are_the_price_of_what_was_reported(
    gateway: GatewayProcess, provider: ScriptedProvider, calls: list[Planned]
) -> None:
    account = gateway.account()
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(gateway.connect()) for _ in calls]
        for client, call in zip(clients, calls, strict=True):
            script = provider.script(*call.steps())
            body = chat(model=call.model, stream=call.stream, x_script=script)
            client.send(request(body=body, key=account.key))
        for client in clients:
            client.read_reply()
    gateway.settle(account.id, sum(call.charged for call in calls))
    with gateway.books() as books:
        assert books.balance(account.id) == 1_000_000_000 - sum(call.price for call in calls)
        by_price = sorted(charge.amount for charge in books.charges(account.id))
    assert by_price == sorted(call.price for call in calls if call.charged)


def test_accounts_do_not_mix(gateway: GatewayProcess, provider: ScriptedProvider) -> None:
    accounts = [gateway.account() for _ in range(8)]
    with contextlib.ExitStack() as stack:
        clients = []
        for turn in range(5):
            for number, account in enumerate(accounts):
                used = usage(10 * (number + 1), turn + 1)
                script = provider.script(*json_answer(completion("hi", used)))
                client = stack.enter_context(gateway.connect())
                client.send(request(body=chat(x_script=script), key=account.key))
                clients.append(client)
        assert {client.read_reply().status for client in clients} == {200}
    for number, account in enumerate(accounts):
        gateway.settle(account.id, 5)
        with gateway.books() as books:
            # Five calls of 10 x (number + 1) tokens of input; 1 + 2 + 3 + 4 + 5 of output.
            spent = 5 * 2 * 10 * (number + 1) + 8 * 15
            assert books.balance(account.id) == 1_000_000_000 - spent
