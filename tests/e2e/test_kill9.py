"""kill -9 at each named point of the path, then a restart: what a client got whole is charged once."""

import contextlib
import re
from collections.abc import Iterator

import pytest

from tests.support.gateway import REPOSITORY, GatewayProcess, TestAccount, until
from tests.support.provider import ScriptedProvider, json_answer, stream_answer
from tests.support.rawhttp import RawClient, Reply, chat, request

CALLS = 12
ROUNDS_MAX = 10

# The point, and at which of its passes the process dies.
POINTS = {
    "after_reserve": 5,
    "after_upstream_head": 5,
    "after_upstream_end": 5,
    "before_commit": 5,
    "usage_written": 5,
    "turn_uncommitted": 25,
    "turn_committed": 25,
    "after_commit": 5,
    "after_last_bytes": 5,
    "settled_uncommitted": 1,  # under load charges gather: there are few batches
}
# Only reached while the database is away: tests/billing/settlement/ tries these.
SPOOL_POINTS = {"before_spool", "spool_unsynced", "spool_replayed"}
# Only reached with a broker: tests/faults/test_brokers.py tries these.
BROKER_POINTS = {"claimed_unsent", "settled_unacknowledged"}
# Off the path of a call: tests/billing/shop/ and tests/billing/test_corrections.py try these.
SHOP_POINTS = {
    "order_paid",
    "order_posted",
    "reward_decided",
    "reward_posted",
    "correction_promised",
    "correction_held",
    "correction_posted",
}
# So is this: tests/billing/rerating/ and tests/e2e/test_rerating.py try these.
RERATING_POINTS = {"rerating_promised", "rerating_held", "rerating_posted"}
# And this one: tests/billing/settlement/test_day_fold.py.
FOLD_POINTS = {"days_folded_uncommitted"}


def named_points() -> set[str]:
    """Every point that the product names."""
    found = set()
    for package in ("llm_gateway", "billing"):
        for path in (REPOSITORY / package).rglob("*.py"):
            found |= set(re.findall(r"\breach\(\s*\"(\w+)\"\s*\)", path.read_text()))
    return found


def test_every_point_is_tried() -> None:
    elsewhere = SPOOL_POINTS | BROKER_POINTS | SHOP_POINTS | RERATING_POINTS | FOLD_POINTS
    assert named_points() == set(POINTS) | elsewhere


@pytest.fixture(scope="module")
def mortal(
    provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway that is not running; each test kills it and starts it again on the same data."""
    with GatewayProcess(tmp_path_factory.mktemp("mortal"), provider.base_url) as gateway:
        yield gateway


def send_all(
    gateway: GatewayProcess,
    provider: ScriptedProvider,
    account: TestAccount,
    turn: int,
    stack: contextlib.ExitStack,
) -> dict[str, RawClient]:
    clients = {}
    for number in range(CALLS):
        stream = number % 2 == 1
        script = provider.script(*(stream_answer() if stream else json_answer()))
        name = f"call-{turn}-{number}"
        with contextlib.suppress(OSError):  # it may be dead by now
            client = stack.enter_context(gateway.connect())
            client.send(
                request(
                    body=chat(stream=stream, x_script=script),
                    key=account.key,
                    headers={"X-Request-Id": name},
                )
            )
            clients[name] = client
    return clients


def is_whole(reply: Reply) -> bool:
    """Whether the client has all of its answer: the body's last byte, or [DONE]."""
    if reply.status != 200:
        return False
    if "text/event-stream" in reply.headers["content-type"]:
        return b"data: [DONE]\n\n" in reply.body
    return reply.whole


@pytest.mark.parametrize("point", POINTS)
def test_whole_answers_are_charged_once(
    mortal: GatewayProcess, provider: ScriptedProvider, point: str
) -> None:
    mortal.start(failpoint=point, at=POINTS[point])
    account = mortal.account()
    replies: dict[str, Reply] = {}
    for turn in range(ROUNDS_MAX):
        with contextlib.ExitStack() as stack:
            clients = send_all(mortal, provider, account, turn, stack)
            replies |= {name: client.read_reply() for name, client in clients.items()}
        if not mortal.running:
            break
    assert mortal.wait() == -9, "the point was never reached"

    mortal.restart()
    mortal.audit()
    with mortal.books() as books:
        charges = books.charges(account.id)
        spent = 1_000_000_000 - books.balance(account.id)
    ids = [charge.client_request_id for charge in charges]
    whole = {name for name, reply in replies.items() if is_whole(reply)}
    assert whole <= set(ids)
    assert len(ids) == len(set(ids)), "a call was charged twice"
    assert spent == sum(charge.amount for charge in charges)
    for charge in charges:
        if charge.client_request_id in whole:
            assert charge.amount == 64
    # It serves on, and charges on.
    assert mortal.call(chat(), account.key).status == 200
    until(lambda: len(_charges(mortal, account)) == len(ids) + 1 or None, "the next charge")
    mortal.kill9()


def _charges(gateway: GatewayProcess, account: TestAccount) -> list[object]:
    with gateway.books() as books:
        return list(books.charges(account.id))


def test_killed_between_two_words_pays_for_what_is_known(
    mortal: GatewayProcess, provider: ScriptedProvider
) -> None:
    from tests.support.provider import Gate

    mortal.start()
    account = mortal.account()
    gate = Gate()
    words = stream_answer(["one", "two", "three"])
    script = provider.script(*words[:2], gate, *words[2:])
    with mortal.connect() as client:
        client.send(request(body=chat(stream=True, x_script=script), key=account.key))
        client.read_until(b'"one"')
        mortal.kill9()
        assert b"[DONE]" not in client.read_to_end()
    with mortal.books() as books:
        assert books.held(account.id) == 1  # the evidence
    gate.open()
    mortal.restart()
    mortal.audit()
    with mortal.books() as books:
        assert books.held(account.id) == 0
        assert 0 <= 1_000_000_000 - books.balance(account.id) <= 2 * 300 + 8 * 1000
    mortal.kill9()
