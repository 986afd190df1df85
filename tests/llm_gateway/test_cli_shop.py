"""The command line's part of the credit store: admins, keys, products, orders, rewards, corrections."""

import json
from collections.abc import Iterator

import httpx2
import pytest

from llm_gateway.cli.failure import CommandError
from llm_gateway.cli.products import cents
from llm_gateway.credentials import Credentials, write_credentials
from tests.llm_gateway.test_cli import ask, failure, run
from tests.support.admin_server import ADMIN_TOKEN, AdminServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AdminServer]:
    made = AdminServer(tmp_path_factory.mktemp("data"))
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def data_dir(server: AdminServer, tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = tmp_path_factory.mktemp("credentials")
    write_credentials(directory, Credentials(url=server.url, admin_token=ADMIN_TOKEN))
    return str(directory)


def say(data_dir: str, *arguments: str) -> str:
    result = run(*arguments, "--data-dir", data_dir)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(data_dir: str, *arguments: str) -> str:
    result = run(*arguments, "--data-dir", data_dir)
    assert result.exit_code != 0
    return failure(result)


def test_admin_token_from_making_to_revoking(server: AdminServer, data_dir: str) -> None:
    made = ask(data_dir, "admins", "create", "eve", "--role", "operator", "--expires", "90d")
    token = str(made["token"])
    as_eve = run("keys", "list", "--url", server.url, "--admin-token", token)
    assert as_eve.exit_code == 0
    grant = run("accounts", "grant", "ada", "1", "--url", server.url, "--admin-token", token)
    assert "owner or finance" in failure(grant)
    table = say(data_dir, "admins", "list")
    assert "eve" in table
    assert token not in table
    admin = made["admin"]
    assert isinstance(admin, dict)
    assert "revoked" in say(data_dir, "admins", "revoke", admin["token_id"])
    gone = run("keys", "list", "--url", server.url, "--admin-token", token)
    assert "HTTP 401" in failure(gone)
    assert "HTTP 409" in refused(data_dir, "admins", "create", "eve", "--role", "operator")


def test_key_is_changed_and_rotated(data_dir: str) -> None:
    made = ask(data_dir, "keys", "create", "--account", "ada", "--rpm", "60", "--scene", "agent")
    key = made["key"]
    assert isinstance(key, dict)
    assert (key["requests_per_minute"], key["tokens_per_minute"]) == (60, None)
    options = ("--rpm", "0", "--tpm", "1000", "--model", "mini", "--no-scenes")
    changed = ask(data_dir, "keys", "update", key["key_id"], *options)
    assert [changed[name] for name in ("requests_per_minute", "tokens_per_minute")] == [None, 1000]
    assert (changed["models"], changed["scenes"]) == (["mini"], [])
    assert "1000 tpm" in say(data_dir, "keys", "list", "--account", "ada")
    assert "nothing to change" in refused(data_dir, "keys", "update", key["key_id"])
    assert "until 2100-01-31" in say(
        data_dir, "keys", "update", key["key_id"], "--expires", "2100-01-31"
    )
    assert "until" not in say(data_dir, "keys", "update", key["key_id"], "--no-expiry")
    assert "in the past" in refused(
        data_dir, "keys", "update", key["key_id"], "--expires", "2001-01-31"
    )
    rotated = ask(data_dir, "keys", "rotate", key["key_id"], "--grace", "60")
    assert rotated["token"] != made["token"]
    again = refused(data_dir, "keys", "rotate", key["key_id"])
    assert "replaced" in again


def test_product_order_and_payment(server: AdminServer, data_dir: str) -> None:
    product = ask(
        data_dir, "products", "create", "fifty", "--name", "Fifty", "--credits", "50.5",
        "--price", "39.90", "--currency", "EUR",
    )  # fmt: skip
    assert product["credit_amount_micro_credits"] == 50_500_000
    product_id = str(product["product_id"])
    assert "EUR 39.90" in say(data_dir, "products", "list")
    changed = ask(data_dir, "products", "update", product_id, "--price", "40", "--badge", "new")
    assert (changed["price_cent"], changed["badge"], changed["name"]) == (4000, "new", "Fifty")
    orders = []
    for _ in range(2):
        placed = httpx2.post(
            f"{server.url}/credit-store/orders",
            json={"product_id": product_id},
            headers={"Authorization": f"Bearer {server.user_key}"},
        )
        orders.append(str(placed.json()["order"]["order_id"]))
    paid, cancelled = orders
    told = say(data_dir, "orders", "pay", paid, "--payment-ref", "wire 7")
    assert told.startswith("50.5 credits credited to ada")
    assert "already" in say(data_dir, "orders", "pay", paid)
    assert "wire 7" in say(data_dir, "orders", "show", paid)
    assert ask(data_dir, "orders", "cancel", cancelled)["status"] == "cancelled"
    assert "HTTP 409" in refused(data_dir, "orders", "pay", cancelled)
    listed = ask(data_dir, "orders", "list", "--account", "ada", "--status", "credited")
    assert listed["total"] == 1
    told = say(data_dir, "orders", "refund", paid, "--credits", "0.5", "--reason", "broken")
    assert told == "-0.5 credits were posted to ada; the balance was 50 then\n"


def test_adjustment_up_and_down(data_dir: str) -> None:
    told = say(data_dir, "accounts", "adjust", "kim", "2.5", "--reason", "sorry")
    assert told == "2.5 credits were posted to kim; the balance was 2.5 then\n"
    down = ("accounts", "adjust", "kim", "-3", "--reason", "twice", "--idempotency-key", "k1")
    assert "-3 credits were posted to kim; the balance was -0.5 then" in say(data_dir, *down)
    assert "-3 credits were posted already" in say(data_dir, *down)
    refusal = refused(data_dir, "accounts", "refund", "nothing", "--reason", "sorry")
    assert "There is no such charge. (HTTP 404)" in refusal


def test_adjustment_without_a_reason_asks_nobody(data_dir: str) -> None:
    result = run("accounts", "adjust", "kim", "1", "--data-dir", data_dir)
    assert result.exit_code == 2
    assert "--reason" in result.stderr


def test_rewards_and_their_rules(data_dir: str) -> None:
    rule = ask(data_dir, "rewards", "create-rule", "badge", "0.25", "--name", "B", "--cap", "1")
    assert rule["amount_micro_credits"] == 250_000
    pay = ("rewards", "pay", "badge", "lea")
    assert say(data_dir, *pay, "--ref", "b1") == "0.25 credits paid to lea\n"
    assert "already" in say(data_dir, *pay, "--ref", "b1")
    assert "nothing is paid" in say(data_dir, *pay, "--post", "p1", "--by", "kim")
    assert "b1" in say(data_dir, "rewards", "list", "--account", "lea")
    off = ask(data_dir, "rewards", "update-rule", str(rule["rule_id"]), "--status", "inactive")
    assert off["status"] == "inactive"
    assert "forum_like" in say(data_dir, "rewards", "rules")


def test_all_that_is_wrong_is_one_line(data_dir: str) -> None:
    line = refused(
        data_dir, "products", "create", "a b", "--name", "", "--credits", "1", "--price", "1",
        "--currency", "yuan",
    )  # fmt: skip
    assert all(field in line for field in ("sku:", "name:", "currency:"))


@pytest.mark.parametrize(("text", "value"), [("9.90", 990), ("12", 1200), ("0", 0), ("0.01", 1)])
def test_price_is_cents(text: str, value: int) -> None:
    assert cents(text) == value


@pytest.mark.parametrize("text", ["", "x", "-1", "1.001", "NaN", "Infinity", "1e999999", "1,5"])
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        cents(text)


def test_json_is_what_the_api_says(data_dir: str) -> None:
    for command in (("products", "list"), ("orders", "list"), ("rewards", "list")):
        assert json.loads(say(data_dir, *command, "--json")).keys() >= {"items", "total"}


def test_statement_and_what_is_outstanding(data_dir: str) -> None:
    say(data_dir, "accounts", "grant", "fin", "5")
    say(data_dir, "accounts", "adjust", "fin", "-1.5", "--reason", "paid twice")
    month = ask(data_dir, "accounts", "show", "fin")["created_at"]
    told = say(data_dir, "statement", "fin", str(month)[:7])
    lines = [line.split() for line in told.splitlines()]
    assert lines[1:5] == [
        ["opening", "0"],
        ["adjustment", "expense", "1", "-1.5"],
        ["manual", "income", "1", "5"],
        ["closing", "3.5"],
    ]
    assert lines[5] == ["The", "month", "is", "not", "over:", "this", "may", "still", "change."]
    assert ask(data_dir, "statement", "fin", "2026-01")["closing_micro_credits"] == 0
    assert "month" in refused(data_dir, "statement", "fin", "2026-13")
    assert ask(data_dir, "outstanding")["positive_micro_credits"] >= 3_500_000  # type: ignore[operator]
    assert "as of 2026-01-01 00:00:00Z" in say(data_dir, "outstanding", "--at", "2026-01-01")


def test_corrections_and_acts_are_listed(data_dir: str) -> None:
    say(data_dir, "accounts", "grant", "cor", "5")
    say(data_dir, "accounts", "adjust", "cor", "-1.5", "--reason", "paid twice")
    told = say(data_dir, "corrections", "--account", "cor", "--kind", "adjustment")
    assert [line.split()[2:] for line in told.splitlines()[1:]] == [
        ["adjustment", "cor", "-1.5", "admin", "paid", "twice"]
    ]
    told = say(data_dir, "audit", "--target", "cor", "--action", "account.grant")
    assert "amount_micro_credits 5000000" in told
    assert ask(data_dir, "audit", "--target", "cor")["total"] == 2


def test_usage_of_all_and_consumption_of_one(server: AdminServer, data_dir: str) -> None:
    told = say(data_dir, "usage", "--period", "7d", "--by", "account")
    assert told.splitlines()[-1].split() == ["total", "0", "0", "0", "0", "0"]
    assert "account" in refused(data_dir, "usage", "--run-id", "r")
    series = ask(data_dir, "usage", "--by", "key", "--time-zone", "Asia/Tokyo")["series"]
    assert isinstance(series, list)
    assert len(series) in (24, 25)  # the last quarter of an hour ends with the hour
    own = ("consumption", "--url", server.url, "--key", server.user_key)
    result = run(*own, "--period", "24h", "--by", "model", "--series")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("total") == 1
    assert result.stdout.count("Z ") >= 24
    assert "time_zone" in failure(run(*own, "--time-zone", "Nowhere"))
