"""The clients against the real API: buying, paying, looking; waiting for it and awaiting it."""

import csv
import inspect
import io
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from llm_gateway.api.views.accounts import AccountList, AccountView
from llm_gateway.client import (
    AdminClient,
    AlreadyExistsError,
    AsyncAdminClient,
    AsyncGatewayClient,
    EventConflictError,
    GatewayClient,
    InvalidKeyError,
    InvalidRequestError,
    KeyKind,
    NotAllowedError,
    NotFoundError,
    OrderStatus,
    PriceBookConflictError,
    PriceBookRefusedError,
    Role,
    RoleNotAllowedError,
    UnreadableAnswerError,
)
from llm_gateway.client.methods import AskList
from tests.support.admin_server import ADMIN_TOKEN, AdminServer
from tests.support.control import OTHER_BOOK
from tests.support.scripted_http import Scripted, ScriptedServer

FIVE = 5_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminServer]:
    made = AdminServer(tmp_path_factory.mktemp("data"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def admin(server: AdminServer) -> Iterator[AdminClient]:
    with AdminClient(server.url, ADMIN_TOKEN) as made:
        yield made


@pytest.fixture
def ada(server: AdminServer) -> Iterator[GatewayClient]:
    with GatewayClient(server.url, server.user_key) as made:
        yield made


_numbers = itertools.count()


def _product(admin: AdminClient, **more: str) -> str:
    made = admin.create_product(
        f"sku-{next(_numbers)}",
        name="Five",
        credit_amount_micro_credits=FIVE,
        price_cent=990,
        currency="CNY",
        **more,  # type: ignore[arg-type]  # texts alone
    )
    return made.product_id


def test_order_is_placed_paid_and_in_the_ledger(admin: AdminClient, ada: GatewayClient) -> None:
    before = ada.balance().balance_micro_credits
    placed = ada.create_order(_product(admin), quantity=2)
    assert (placed.repeated, placed.order.status) == (False, OrderStatus.PENDING)
    assert ada.order(placed.order.order_id) == placed.order
    paid = admin.pay_order(placed.order.order_id, payment_ref="wire 1")
    assert (paid.repeated, paid.order.payment_ref) == (False, "wire 1")
    assert admin.pay_order(placed.order.order_id).repeated
    assert ada.balance().balance_micro_credits == before + 2 * FIVE
    (entry,) = ada.transactions(source="purchase", page_size=1).items
    assert (entry.order_id, entry.amount_micro_credits) == (placed.order.order_id, 2 * FIVE)
    assert [order.order_id for order in admin.orders.iterate(account="ada")].count(
        placed.order.order_id
    ) == 1


def test_own_idempotency_key_is_the_same_order(admin: AdminClient, ada: GatewayClient) -> None:
    product = _product(admin)
    one = ada.create_order(product, idempotency_key="k-1")
    two = ada.create_order(product, idempotency_key="k-1")
    assert (two.repeated, two.order.order_id) == (True, one.order.order_id)
    with pytest.raises(EventConflictError):
        ada.create_order(product, quantity=3, idempotency_key="k-1")
    # Without one, two calls are two orders.
    assert ada.create_order(product).order.order_id != ada.create_order(product).order.order_id


def test_every_item_of_a_list_once_page_by_page(admin: AdminClient) -> None:
    for number in range(7):
        admin.grant("pages", amount_micro_credits=1 + number)
    made = admin.create_key(KeyKind.USER, account="pages")
    with GatewayClient(admin.url, made.token) as pages:
        amounts = [e.amount_micro_credits for e in pages.transactions.iterate(page_size=3)]
        assert amounts == [7, 6, 5, 4, 3, 2, 1]  # by cursor
        assert len(pages.transactions(page_size=3).items) == 3
        # From where it was asked to begin.
        after = pages.transactions(page_size=5).next_after
        assert after is not None
        rest = pages.transactions.iterate(after=after, page_size=1)
        assert [entry.amount_micro_credits for entry in rest] == [2, 1]
        assert list(pages.charges.iterate()) == []
    # By page number.
    by_page = [each.account for each in admin.accounts.iterate(page_size=1)]
    assert by_page == [each.account for each in admin.accounts(page_size=100).items]
    assert len(by_page) > 1
    acts = [act.audit_id for act in admin.audit.iterate(action="account.grant", page_size=2)]
    assert acts == sorted(set(acts), reverse=True)
    assert len(acts) >= 7


def test_list_that_does_not_move_on_ends_with_an_error() -> None:
    page = (
        b'{"items": [], "page": 1, "page_size": 1, "total": 9, "has_more": true,'
        b' "next_after": "5", "source": "db"}'
    )
    with ScriptedServer(Scripted(body=page)) as server, GatewayClient(server.url, "k") as client:
        with pytest.raises(UnreadableAnswerError, match="does not move on"):
            list(client.transactions.iterate())
        assert len(server.received) == 2


def test_iterating_asks_for_a_page_only_when_it_is_needed() -> None:
    page = b'{"items": [], "page": 1, "page_size": 1, "total": 0, "has_more": false, "book": 1}'
    with ScriptedServer(Scripted(body=page)) as server, GatewayClient(server.url, "k") as client:
        rules = client.price_rules.iterate()
        assert server.received == []
        assert list(rules) == []
        assert len(server.received) == 1


def test_export_is_the_whole_ledger_in_pieces(admin: AdminClient) -> None:
    for number in range(1, 4):
        admin.grant("csv", amount_micro_credits=number, description="=1+1")
    key = admin.create_key(KeyKind.USER, account="csv").token
    with GatewayClient(admin.url, key) as client:
        with client.transactions_csv() as pieces:
            rows = list(csv.DictReader(io.StringIO(b"".join(pieces).decode("utf-8-sig"))))
        assert [row["amount_micro_credits"] for row in rows] == ["1", "2", "3"]
        tomorrow = datetime.now(UTC) + timedelta(days=1)
        with client.transactions_csv(from_=tomorrow) as pieces:
            assert b"".join(pieces).count(b"\r\n") == 1  # the head
        # Left in the middle, the client goes on.
        with client.transactions_csv() as pieces:
            next(pieces)
        assert client.balance().balance_micro_credits == 6


def test_what_is_not_given_stays_and_none_takes_a_limit_away(admin: AdminClient) -> None:
    made = admin.create_key(
        KeyKind.USER, account="lim", scenes=["agent"], requests_per_minute=5, tokens_per_minute=9
    )
    changed = admin.update_key(made.key.key_id, requests_per_minute=None, description="x")
    assert changed.requests_per_minute is None
    assert (changed.tokens_per_minute, changed.scenes) == (9, ["agent"])
    product = admin.update_product(_product(admin, badge="hot"), name="Cinq")
    assert (product.name, product.badge, product.price_cent) == ("Cinq", "hot", 990)


def test_key_lives_until_it_is_revoked(admin: AdminClient) -> None:
    made = admin.create_key(KeyKind.USER, account="kim")
    with GatewayClient(admin.url, made.token) as kim:
        assert kim.balance().account == "kim"
        assert [model.id for model in kim.models().data] == []
        assert admin.revoke_key(made.key.key_id).revoked
        with pytest.raises(InvalidKeyError):
            kim.balance()


def test_app_key_speaks_for_its_accounts(admin: AdminClient) -> None:
    made = admin.create_key(KeyKind.APP, app="forum", accounts=["bob", "eve"])
    admin.grant("eve", amount_micro_credits=FIVE)
    with GatewayClient(admin.url, made.token, account="bob") as bob:
        eve = bob.for_account("eve")
        assert bob.balance().balance_micro_credits == 0
        assert eve.balance().balance_micro_credits == FIVE
        assert bob.balance().account == "bob"
        with pytest.raises(NotAllowedError):
            bob.for_account("ada").balance()
        eve.close()  # which leaves the connections to their owner
        assert bob.balance().account == "bob"


def test_price_book_from_text_to_effect(admin: AdminClient) -> None:
    assert admin.lint_price_book(OTHER_BOOK).acceptable
    with pytest.raises(PriceBookRefusedError) as caught:
        admin.upload_price_book("[book]\nname = 1")
    assert len(caught.value.problems) > 1
    version = admin.upload_price_book(OTHER_BOOK).version
    assert admin.upload_price_book(OTHER_BOOK).repeated
    assert admin.price_book_text(version) == OTHER_BOOK
    assert admin.price_book(version).current is False
    assert [book.version for book in admin.price_books.iterate(page_size=1)] == [version, 1]
    assert admin.diff_price_book(version).against == 1
    with pytest.raises(PriceBookConflictError) as refused:
        admin.activate_price_book(version, replaces=version + 1)
    assert refused.value.details["replaces"] == 1
    assert admin.activate_price_book(version, replaces=1).version == version
    explained = admin.explain_price(scene="chat", provider="echo", model="mini", version=1)
    assert explained.book == 1


def test_refusals_say_all_that_is_wrong(admin: AdminClient) -> None:
    admin.create_account("twice")
    with pytest.raises(AlreadyExistsError):
        admin.create_account("twice")
    with pytest.raises(NotFoundError):
        admin.order("no-such-order")
    with pytest.raises(InvalidRequestError) as caught:
        admin.create_product(
            "a b", name="", credit_amount_micro_credits=0, price_cent=1, currency="yuan"
        )
    assert set(caught.value.params) >= {"sku", "name", "currency"}
    assert caught.value.request_id


def test_role_is_told_with_those_that_may(admin: AdminClient) -> None:
    token = admin.create_token("reader", role=Role.READ_ONLY).token
    with AdminClient(admin.url, token) as reader:
        assert reader.accounts().page == 1
        with pytest.raises(RoleNotAllowedError) as caught:
            reader.grant("ada", amount_micro_credits=1)
    assert caught.value.details["roles"] == ["owner", "finance"]


def test_finance_and_operations_answer(admin: AdminClient) -> None:
    admin.adjust_account("fin", amount_micro_credits=FIVE, reason="sorry")
    now = datetime.now(UTC)
    statement = admin.statement("fin", f"{now:%Y-%m}")
    assert statement.closing_micro_credits == FIVE
    assert admin.outstanding().positive_micro_credits >= FIVE
    assert admin.usage(period="7d", group_by="account", time_zone="Europe/Berlin").groups == []
    assert [each.account for each in admin.corrections.iterate(account="fin")] == ["fin"]
    assert list(admin.holds.iterate()) == []
    assert list(admin.outbox.iterate()) == []
    assert list(admin.quarantine.iterate(unresolved_only=True)) == []
    assert admin.reconcile(full=True).ok
    assert admin.repair(reason="to see").report.ok
    assert admin.rebuild_guard(reason="to see").accounts == 0
    with pytest.raises(NotFoundError):
        admin.replay_quarantined(1, reason="x")


def test_simulation_is_told_whole_or_line_by_line(admin: AdminClient) -> None:
    now = datetime.now(UTC)
    found = admin.simulate_price_book(1, days=1)
    assert (found.book, found.totals.calls) == (1, 0)
    with admin.simulate_toml_lines(OTHER_BOOK, from_=now - timedelta(days=1), to=now) as pieces:
        lines = b"".join(pieces).splitlines()
    assert b'"result"' in lines[-1]
    begun = admin.start_rerating(
        1, from_=now - timedelta(days=2), to=now, reason="to see", idempotency_key="run-1"
    )
    assert (begun.repeated, begun.run.run_id) == (False, "run-1")
    assert [run.run_id for run in admin.reratings.iterate()] == ["run-1"]
    assert admin.rerating("run-1").reason == "to see"


def test_rewards_are_paid_once(admin: AdminClient) -> None:
    rule = admin.create_reward_rule("badge", name="Badge", amount_micro_credits=7)
    paid = admin.pay_reward("badge", account="lea", post="p1", acting_user="kim")
    again = admin.pay_reward("badge", account="lea", post="p1", acting_user="kim")
    assert (paid.result, again.result) == ("paid", "repeated")
    assert admin.update_reward_rule(rule.rule_id, status="inactive").status == "inactive"
    assert "badge" in {each.source for each in admin.reward_rules.iterate(page_size=1)}


def test_threads_share_a_client(admin: AdminClient) -> None:
    def grant(number: int) -> bool:
        return admin.grant("shared", amount_micro_credits=1, event_id=f"g{number % 10}").repeated

    with ThreadPoolExecutor(8) as pool:
        repeated = list(pool.map(grant, range(40)))
    assert repeated.count(False) == 10
    assert admin.account("shared").balance_micro_credits == 10


# -- awaited -----------------------------------------------------------------------------------


@asynccontextmanager
async def _async(server: AdminServer) -> AsyncIterator[tuple[AsyncAdminClient, AsyncGatewayClient]]:
    async with (
        AsyncAdminClient(server.url, ADMIN_TOKEN) as admin,
        AsyncGatewayClient(server.url, server.user_key) as ada,
    ):
        yield admin, ada


async def test_awaited_order_is_placed_paid_and_listed(server: AdminServer) -> None:
    async with _async(server) as (admin, ada):
        product = await admin.create_product(
            "async", name="A", credit_amount_micro_credits=FIVE, price_cent=0, currency="CNY"
        )
        placed = await ada.create_order(product.product_id)
        assert (await admin.pay_order(placed.order.order_id)).order.account == "ada"
        found = [each async for each in ada.orders.iterate(page_size=1)]
        # The server's clock stands still: which of its orders is the newest is open.
        assert [each.order_id for each in found].count(placed.order.order_id) == 1
        assert len(found) == (await ada.orders()).total
        async with ada.transactions_csv(source="purchase") as pieces:
            text = b"".join([piece async for piece in pieces])
        assert placed.order.order_id.encode() in text
        with pytest.raises(NotFoundError):
            await ada.charge("nothing")


async def test_awaited_app_key_speaks_for_its_accounts(server: AdminServer) -> None:
    async with AsyncAdminClient(server.url, ADMIN_TOKEN) as admin:
        token = (await admin.create_key(KeyKind.APP, app="forum")).token
    async with AsyncGatewayClient(server.url, token, account="x") as app:
        assert (await app.for_account("y").balance()).account == "y"
        await app.for_account("y").aclose()
        assert (await app.balance()).account == "x"


# -- what help() and editors see ---------------------------------------------------------------


def test_method_shows_its_own_text_and_arguments(admin: AdminClient) -> None:
    method: Callable[..., object] = admin.create_account
    assert (method.__doc__ or "").startswith("Make an account")
    assert "note" in inspect.signature(method).parameters
    assert (admin.accounts.__doc__ or "").startswith("List accounts")
    with pytest.raises(TypeError):
        admin.create_account("x", nonsense=1)  # type: ignore[call-arg]


def test_query_of_a_list_moves_by_number_where_there_is_no_cursor(admin: AdminClient) -> None:
    page = admin.accounts(page=1, page_size=1)
    asked: AskList[AccountList, AccountView] = AskList(AccountList, page=1, page_size=1, after="")
    following = asked.following(page)
    assert following is not None
    assert following.query == {"page": 2, "page_size": 1, "after": ""}
