"""Lint finds what parses well and is probably wrong, and writes the rule that is missing."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing_rules.book import Problem, parse_book
from pricing_rules.lint import lint, near_rule_toml
from pricing_rules.match import match

HEAD = '[book]\nname = "t"\ncurrency = "USD"\ncredits_per_unit = "100"\n'


def rule(rule_id: str, extra: str = "", **keys: str) -> str:
    values = {"description": "list of 2026-11", "provider": "p", "model": rule_id} | keys
    if "free" not in extra:
        values = {"input": "2.50", "output": "10.00"} | values
    lines = [f'{key} = "{value}"' for key, value in values.items()]
    return "\n".join(["[[rule]]", f'id = "{rule_id}"', *lines, extra]) + "\n"


def warnings(*rules: str) -> list[Problem]:
    found = lint(HEAD + "".join(rules))
    assert all(problem.level == "warning" for problem in found), found
    return found


def test_a_good_book_has_no_problems() -> None:
    assert (
        warnings(
            rule("a", cached_input="1.25", reasoning="10.00", per_call="0.01"),
            rule("b", "free = true"),
            rule("c", 'status = "disabled"'),
        )
        == []
    )


@pytest.mark.parametrize(
    ("keys", "field", "message"),
    [
        ({"cached_input": "2.51"}, "cached_input", "is dearer than input"),
        ({"output": "2.49"}, "output", "is cheaper than input"),
        ({"reasoning": "9.99"}, "reasoning", "is cheaper than output"),
        ({"cached_input": "0"}, "cached_input", "is 0: these tokens are given away"),
        ({"output": "0"}, "output", "is 0: these tokens are given away"),
        (
            {"input": "0.0000025"},
            "input",
            "looks like a price per token; per 1M tokens it would be 2.5",
        ),
        ({"output": "5000.01"}, "output", "dearer than any price list known"),
        ({"per_call": "10.01"}, "per_call", "is 10.01 for one call, not for a thousand"),
        ({"description": ""}, "description", "says nothing: name the price list"),
    ],
)
def test_a_suspicious_price_is_told_at_its_line(
    keys: dict[str, str], field: str, message: str
) -> None:
    text = rule("a", **keys)
    (problem,) = warnings(text)
    assert (problem.rule, problem.field) == ("a", field)
    assert message in problem.message
    assert (HEAD + text).split("\n")[problem.line - 1].startswith(f"{field} =")


@pytest.mark.parametrize(
    "keys",
    [
        {"cached_input": "2.50"},
        {"output": "2.50"},
        {"reasoning": "10"},
        {"cached_input": "0.001"},
        {"output": "5000"},
        {"per_call": "10"},
        {"per_call": "0"},
    ],
)
def test_a_price_on_the_limit_is_fine(keys: dict[str, str]) -> None:
    assert warnings(rule("a", **keys)) == []


def test_a_missing_description_is_told_at_the_rule() -> None:
    text = rule("a").replace('description = "list of 2026-11"\n', "")
    (problem,) = warnings(text)
    assert (problem.line, problem.field) == (5, "description")


@pytest.mark.parametrize(
    ("winner", "loser"),
    [
        ({"model": "*"}, {"model": "m"}),
        ({"model": "m*", "scene": "*"}, {"model": "m-?*", "scene": "a"}),
        ({"model": "m", "provider": "*"}, {"model": "m", "provider": "p*"}),
        ({"model": "m"}, {"model": "m"}),
    ],
)
def test_a_rule_that_is_never_reached_is_told(
    winner: dict[str, str], loser: dict[str, str]
) -> None:
    (problem,) = warnings(rule("b", **loser), rule("a", "priority = 1", **winner))
    assert (problem.rule, problem.field) == ("b", "priority")
    assert problem.message.startswith('is never reached: rule "a" at line ')


@pytest.mark.parametrize(
    ("winner", "loser", "extra"),
    [
        ({"model": "m*"}, {"model": "*"}, "priority = 1"),
        ({"model": "m", "scene": "a"}, {"model": "m", "scene": "*"}, "priority = 1"),
        ({"model": "m", "provider": "q"}, {"model": "m"}, "priority = 1"),
        ({"model": "*"}, {"model": "m"}, "priority = 0"),
        ({"model": "*"}, {"model": "m"}, 'priority = 1\nstatus = "disabled"'),
    ],
)
def test_a_rule_that_can_be_reached_is_not(
    winner: dict[str, str], loser: dict[str, str], extra: str
) -> None:
    assert warnings(rule("b", **loser), rule("a", extra, **winner)) == []


def test_a_book_of_disabled_rules_is_told() -> None:
    (problem,) = warnings(rule("a", 'status = "disabled"'))
    assert problem.field == "status"
    assert "every call is refused" in problem.message


def test_errors_and_warnings_come_in_the_order_of_lines() -> None:
    found = lint(HEAD + rule("a", cached_input="3") + rule("b", "x = 1") + rule("c", output="0"))
    assert [(problem.level, problem.rule) for problem in found] == [
        ("warning", "a"),
        ("error", "b"),
        ("warning", "c"),
    ]
    assert [problem.line for problem in found] == sorted(problem.line for problem in found)


def test_what_is_no_toml_is_one_error() -> None:
    (problem,) = lint("[book")
    assert problem.level == "error"
    assert "this is not TOML" in problem.message


def test_the_missing_rule_is_written_out() -> None:
    assert near_rule_toml("agent", "openai", "gpt-6") == (
        "[[rule]]\n"
        'id = "openai-gpt-6"\n'
        'description = ""  # the price list this is from, and its date\n'
        'scene = "agent"  # or "*" for every scene\n'
        'provider = "openai"\n'
        'model = "gpt-6"\n'
        'input = "0"  # price of 1M tokens, in the currency of [book]\n'
        'output = "0"\n'
    )


def test_the_missing_rule_is_refused_until_priced() -> None:
    (problem,) = [
        problem
        for problem in lint(HEAD + near_rule_toml("a", "p", "m"))
        if problem.level == "error"
    ]
    assert "every price of this rule is 0" in problem.message


@pytest.mark.parametrize("model", ['"', "\\", "a\nb", "\x7f", "\ud800", "💰", "--", "", "'''"])
def test_no_model_name_breaks_out_of_its_quotes(model: str) -> None:
    document = tomllib.loads(near_rule_toml("a", "p", model))
    assert document["rule"][0]["model"] == model.encode("utf-8", "replace").decode()


NAMES = st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="*?"), min_size=1)


@given(NAMES, NAMES, NAMES)
def test_the_missing_rule_once_priced_prices_the_call(
    scene: str, provider: str, model: str
) -> None:
    scene, provider, model = scene[:60], provider[:60], model[:60]
    text = near_rule_toml(scene, provider, model)
    priced = text.replace('input = "0"', 'input = "1"').replace('output = "0"', 'output = "1"')
    book = parse_book(HEAD + priced)
    assert match(book, scene, provider, model) is book.rules[0]
