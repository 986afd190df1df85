"""The comparison of surviving mutants with the list of those that may."""

import pytest

from tests.mutation import Mutant, Verdict, changed_lines, function_of, judge, listed

POST = "billing.ledger.xǁBatchǁpost__mutmut_3"
PRICE = "pricing_rules.price.x_price__mutmut_1"


def described(name: str) -> Mutant:
    return Mutant(function_of(name), "was", "now")


POST_LIVES, PRICE_LIVES = described(POST), described(PRICE)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        (POST, "billing.ledger.Batch.post"),
        (PRICE, "pricing_rules.price.price"),
        ("pricing_rules.price.x__decimal__mutmut_12", "pricing_rules.price._decimal"),
        ("billing.ledger.xǁ_Runningǁ__init____mutmut_2", "billing.ledger._Running.__init__"),
    ],
)
def test_function_of_a_mutant(name: str, function: str) -> None:
    assert function_of(name) == function


def test_a_change_is_told_by_its_lines_alone() -> None:
    """So that an entry of the list outlives a change elsewhere in the module."""
    diff = "--- price.py\n+++ price.py\n@@ -1,4 +1,4 @@\n def f():\n-    a = 1\n+    a = 2\n b"
    assert changed_lines(diff) == ("a = 1", "a = 2")


@pytest.mark.parametrize("status", ["survived", "no tests", "timeout", "suspicious", "segfault"])
def test_a_survivor_must_be_listed(status: str) -> None:
    found = {POST: status, PRICE: "killed"}
    assert judge(found, described, [], ["*"]) == Verdict([], [POST_LIVES], [])
    assert judge(found, described, [POST_LIVES], ["*"]) == Verdict([], [], [])


def test_what_is_listed_must_survive() -> None:
    found = {POST: "killed", PRICE: "survived"}
    verdict = judge(found, described, [POST_LIVES, PRICE_LIVES], ["*"])
    assert verdict == Verdict([], [], [POST_LIVES])


@pytest.mark.parametrize("status", ["not checked", "check was interrupted by user"])
def test_a_run_that_was_broken_off_is_not_good(status: str) -> None:
    found = {POST: status, PRICE: "survived"}
    verdict = judge(found, described, [POST_LIVES], ["*"])
    assert verdict == Verdict([POST], [PRICE_LIVES], [])


def test_a_selection_leaves_the_rest_of_the_list_alone() -> None:
    may = [POST_LIVES, PRICE_LIVES]
    verdict = judge({PRICE: "killed"}, described, may, ["pricing_rules.*"])
    assert verdict == Verdict([], [], [PRICE_LIVES])


def test_each_entry_of_the_list_has_its_reason() -> None:
    assert all(reason.strip() for reason in listed().values())
