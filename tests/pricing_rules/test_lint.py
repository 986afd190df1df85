"""Lint finds what parses well and is probably wrong, and writes the rule that is missing."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing_rules.book import Problem, parse_book
from pricing_rules.lint import lint, near_rule_toml, review
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


@pytest.mark.parametrize(
    ("keys", "extra", "field", "message"),
    [
        ({"per_image": "51"}, "", "per_image", "is 51 for one image, not for a thousand"),
        ({"per_second": "11"}, "", "per_second", "for one second, not for an hour"),
        ({"per_character": "15"}, "", "per_character", "for one character, not for a million"),
        ({"per_search": "10"}, "", "per_search", "for one search, not for a thousand"),
        (
            {"cache_write_5m": "6", "cache_write_1h": "5"},
            "",
            "cache_write_1h",
            "is cheaper than cache_write_5m",
        ),
        (
            {"cache_write_1h": "6"},
            "",
            "cache_write_1h",
            "stands without cache_write_5m",
        ),
        ({"audio_input": "0"}, "", "audio_input", "is 0: these tokens are given away"),
        (
            {},
            'tiers = [{ over_input_tokens = 9, cached_input = "6", input = "5" }]',
            "tiers[0].cached_input",
            "is dearer than input",
        ),
        (
            {},
            'tiers = [{ over_input_tokens = 9, input = "0.000005" }]',
            "tiers[0].input",
            "looks like a price per token",
        ),
        (
            {},
            'tiers = [{over_input_tokens=90, input="3"}, {over_input_tokens=9, input="2"}]',
            "tiers[1].input",
            "is cheaper than below: a call could cost less for a longer prompt",
        ),
    ],
)
def test_a_suspicious_price_of_any_kind_is_told(
    keys: dict[str, str], extra: str, field: str, message: str
) -> None:
    found = [p for p in warnings(rule("a", extra, **keys)) if p.field == field]
    assert any(message in problem.message for problem in found), found
    assert all(problem.column for problem in found)


def test_zero_is_meant_where_pieces_are_priced() -> None:
    assert warnings(rule("a", input="0", output="0", per_second="0.0001")) == []


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ('hours = [{ from = "01:00", to = "02:00", multiply = "2" }]', "hours"),
        ('tiers = [{ over_input_tokens = 5, input = "0" }]', "tiers"),
        ('service_tiers = { flex = "0.5" }', "service_tiers"),
    ],
)
def test_what_changes_nothing_in_a_free_rule_is_told(line: str, field: str) -> None:
    (problem,) = warnings(rule("a", f"free = true\n{line}"))
    assert problem.field == field


def test_service_tiers_without_a_token_price_are_told() -> None:
    text = rule("a", 'service_tiers = { x = "2" }', input="0", output="0", per_call="1")
    (problem,) = warnings(text)
    assert problem.message.startswith("multiplies prices per token, and this rule has none")


NOW = 1_800_000_000_000  # 2027-01-15T08:00:00Z


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("valid_until = 2027-01-15T08:00:00Z", True),
        ("valid_until = 2027-01-15T08:00:00.001Z", False),
        ('valid_until = 2026-01-15T08:00:00Z\nstatus = "disabled"', False),
        ("valid_from = 2030-01-15T08:00:00Z", False),
    ],
)
def test_a_window_that_is_over_is_told(line: str, told: bool) -> None:
    text = HEAD + rule("a", line) + rule("b")
    assert [p.field for p in lint(text, now=NOW)] == (["valid_until"] if told else [])
    assert lint(text) == []


def test_a_window_before_the_book_takes_effect_is_told() -> None:
    head = HEAD + "effective_from = 2027-01-01T00:00:00Z\n"
    (problem,) = lint(head + rule("a", "valid_until = 2027-01-01T00:00:00Z"))
    assert problem.message == (
        "is before the book takes effect (2027-01-01T00:00:00Z): it never applies"
    )
    assert lint(head + rule("a", "valid_until = 2027-01-01T00:00:00.001Z")) == []


@pytest.mark.parametrize(
    ("winner", "loser", "told"),
    [
        ("", "valid_until = 2030-01-01T00:00:00Z", True),
        ("valid_until = 2030-01-01T00:00:00Z", "", False),
        ("valid_from = 2020-01-01T00:00:00Z", "", False),
        ("valid_from = 2020-01-01T00:00:00Z", "valid_from = 2020-01-01T00:00:00Z", True),
        ("valid_from = 2020-01-02T00:00:00Z", "valid_from = 2020-01-01T00:00:00Z", False),
        ("valid_until = 2030-01-01T00:00:00Z", "valid_until = 2030-01-01T00:00:00Z", True),
        ("valid_until = 2030-01-01T00:00:00Z", "valid_until = 2030-01-02T00:00:00Z", False),
    ],
)
def test_a_rule_is_unreachable_only_if_the_other_holds_as_long(
    winner: str, loser: str, told: bool
) -> None:
    found = warnings(rule("a", f"priority = 1\n{winner}", model="m"), rule("b", loser, model="m"))
    assert [problem.rule for problem in found] == (["b"] if told else [])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2.50", "25", None),
        ("2.50", "25.01", "is 10 times dearer than in the book in effect"),
        ("2.50", "0.25", None),
        ("2.50", "0.2499", "is 10 times cheaper"),
        (
            "2.50",
            "0.0000025",
            'is 1000000 times cheaper than in the book in effect (rule "a"); is one a price per',
        ),
    ],
)
def test_a_price_far_from_the_active_one_is_told(old: str, new: str, message: str | None) -> None:
    active = parse_book(HEAD + rule("a", input=old, output="30", model="m"))
    for name in ("a", "renamed"):
        found = lint(HEAD + rule(name, input=new, output="30", model="m"), active=active)
        told = [p for p in found if "book in effect" in p.message]
        assert [p.field for p in told] == ([] if message is None else ["input"])
        assert all(str(message) in p.message for p in told)


def test_far_is_judged_in_credits() -> None:
    active = parse_book(HEAD + rule("a", model="m"))
    cents = lint(HEAD.replace("100", "1000") + rule("a", model="m"), active=active)
    assert cents == []
    cents = lint(HEAD.replace("100", "1001") + rule("a", per_call="1", model="m"), active=active)
    assert [p.field for p in cents] == ["input", "output"]


def test_models_called_of_late_without_a_rule_are_told() -> None:
    text = HEAD + rule("a", "valid_until = 2027-01-15T08:00:00Z") + rule("b", model="m*")
    served = [("s", "p", "a"), ("s", "p", "m1"), ("s", "q", "m1"), ("s", "q", "m1")]
    found = lint(text, served=served, now=NOW - 1)
    assert [p.line for p in found] == [0]
    assert "'m1' of provider 'q' in scene 's'" in found[0].message
    assert found[0].example == near_rule_toml("s", "q", "m1")
    # A moment later the first rule is over as well.
    assert len([p for p in lint(text, served=served, now=NOW) if not p.line]) == 2
    many = [("s", "q", f"x{n}") for n in range(103)]
    found = lint(text, served=many, now=0)
    assert len(found) == 101
    assert "3 more" in found[-1].message


def test_a_review_is_book_and_problems_at_once() -> None:
    result = review(HEAD + rule("a", output="1"))
    assert result.book is not None
    assert [p.field for p in result.problems] == ["output"]
    assert review(HEAD).book is None
