"""A price book is read strictly, and every mistake is told with its line and what to do."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing_rules.book import (
    BOOK_CHARACTERS_MAX,
    RULES_MAX,
    BookError,
    Problem,
    Rule,
    parse_book,
    read_book,
)
from pricing_rules.lint import lint

HEAD = """\
[book]
name = "test"
currency = "USD"
credits_per_unit = "100"
"""
RULE = """\
[[rule]]
id = "a"
provider = "openai"
model = "gpt-4o"
input = "2.50"
output = "10.00"
"""


def problems_of(text: str) -> tuple[Problem, ...]:
    with pytest.raises(BookError) as info:
        parse_book(text)
    assert all(problem.level == "error" for problem in info.value.problems)
    assert str(info.value).count("\n") == len(info.value.problems) - 1
    return info.value.problems


def only_problem(text: str) -> Problem:
    problems = problems_of(text)
    assert len(problems) == 1, problems
    return problems[0]


def rule_of(extra: str = "", **changes: str) -> Rule:
    text = RULE
    for key, value in changes.items():
        old = next(line for line in RULE.splitlines() if line.startswith(f"{key} ="))
        text = text.replace(old, f"{key} = {value}")
    return parse_book(HEAD + text + extra).rules[0]


def test_a_book_is_read_whole() -> None:
    book = parse_book(
        "\ufeff"
        + HEAD
        + "effective_from = 2026-12-01T08:00:00.5+08:00\n"
        + RULE
        + 'description = "list price"\nscene = "agent"\npriority = -3\nstatus = "disabled"\n'
        + 'cached_input = "1.25"\nreasoning = "12"\nper_call = "0.001"\n'
    )
    assert (book.name, book.currency, book.credits_per_unit) == ("test", "USD", "100")
    assert book.effective_from == 1_796_083_200_500  # 2026-12-01T00:00:00.5Z
    rule = book.rules[0]
    assert (rule.id, rule.description, rule.scene, rule.provider, rule.model) == (
        "a",
        "list price",
        "agent",
        "openai",
        "gpt-4o",
    )
    assert (rule.priority, rule.status, rule.free, rule.line) == (-3, "disabled", False, 6)
    assert (rule.currency, rule.credits_per_unit) == ("USD", "100")
    assert (rule.input, rule.cached_input, rule.output) == ("2.50", "1.25", "10.00")
    assert (rule.reasoning, rule.per_call) == ("12", "0.001")
    # 2.50 USD/1M x 100 credits/USD x 1M micro / 1M tokens = 250 micro-credits a token.
    assert (rule.rates.input, rule.rates.cached_input) == (250, 125)
    assert (rule.rates.output, rule.rates.reasoning) == (1000, 1200)
    assert (rule.fees.call, rule.denominator) == (100_000, 1)


def test_what_is_left_out_has_its_default() -> None:
    rule = rule_of()
    assert (rule.scene, rule.description, rule.priority, rule.status) == ("*", "", 0, "active")
    assert (rule.cached_input, rule.reasoning, rule.per_call) == (None, None, None)
    # Left out is not free: cached input costs what input does, reasoning what output does.
    assert (rule.rates.cached_input, rule.rates.reasoning, rule.fees.call) == (250, 1000, 0)
    assert (rule.valid_from, rule.valid_until, rule.minimum) == (None, None, 0)
    assert (rule.tiers, rule.hours, rule.service_tiers) == ((), (), ())
    assert parse_book(HEAD + RULE).effective_from is None


def test_a_rule_may_have_its_own_currency() -> None:
    rule = rule_of('currency = "CNY"\ncredits_per_unit = "13.9"\n')
    assert (rule.currency, rule.credits_per_unit) == ("CNY", "13.9")
    # 2.50 x 13.9 = 34.75, 10.00 x 13.9 = 139
    assert (rule.rates.input, rule.rates.output, rule.denominator) == (3475, 13900, 100)


def test_a_rule_may_have_a_margin_of_its_own() -> None:
    assert rule_of('credits_per_unit = "120"\n').rates.input == 300
    assert rule_of('currency = "USD"\n').rates.input == 250


def test_a_free_rule_needs_no_prices() -> None:
    text = HEAD + '[[rule]]\nid = "f"\nprovider = "p"\nmodel = "m"\nfree = true\ninput = "0"\n'
    rule = parse_book(text).rules[0]
    assert rule.free
    assert (rule.rates.input, rule.rates.output, rule.fees.call, rule.denominator) == (0, 0, 0, 1)


@pytest.mark.parametrize("zero", ["0", "0.0", "000.000"])
def test_one_price_of_zero_is_allowed(zero: str) -> None:
    assert rule_of(output=f'"{zero}"').rates.output == 0
    assert rule_of('per_call = "1"\n', input='"0"', output='"0"').fees.call == 100_000_000


@pytest.mark.parametrize(
    ("line", "field", "message"),
    [
        ("input = 2.50", "input", 'must be in quotes, to stay exact, like input = "2.50"'),
        ("input = 3", "input", 'must be in quotes, to stay exact, like input = "3"'),
        ("input = 1e400", "input", 'must be in quotes, to stay exact, like input = "2.50"'),
        (
            "input = 0x" + "f" * 5000,
            "input",
            'must be in quotes, to stay exact, like input = "2.50"',
        ),
        ("input = true", "input", "not true or false"),
        ("input = []", "input", "not a list"),
        ("input = {}", "input", "not a table"),
        ("input = 2026-01-01", "input", "not a date or time"),
        ('input = ""', "input", "is empty"),
        ('input = " "', "input", "is empty"),
        ('input = " 1"', "input", "has spaces around it: remove them"),
        ('input = "1e3"', "input", '"1e3" is not a price: write plain digits'),
        ('input = "-1"', "input", '"-1" is not a price'),
        ('input = "+1"', "input", '"+1" is not a price'),
        ('input = "1,5"', "input", '"1,5" is not a price'),
        ('input = "$1"', "input", '"$1" is not a price'),
        ('input = ".5"', "input", '".5" is not a price'),
        ('input = "٢"', "input", '"٢" is not a price'),
        ('input = "1234567890"', "input", "at most 9 digits before"),
        ('input = "0.1234567890123"', "input", "12 after the point"),
        ('output = "nan"', "output", '"nan" is not a price'),
        ('id = "has space"', "id", "may have at most 128 characters"),
        ('id = "ünï"', "id", "letters, digits and"),
        ('id = "-x"', "id", "the first of them a letter or digit"),
        ('id = "' + "x" * 129 + '"', "id", "may have at most 128 characters"),
        ("id = 7", "id", 'must be a text in quotes, like id = "...", not a number'),
        ('provider = ""', "provider", "is empty"),
        ('model = "gpt-4o "', "model", "has spaces around it"),
        ('model = "a\\u0000b"', "model", "must be one line without control characters"),
        ('model = "a\\u007f"', "model", "must be one line without control characters"),
        ('model = "' + "x" * 201 + '"', "model", "has 201 characters; at most 200"),
    ],
)
def test_a_wrong_value_is_told_with_its_line(line: str, field: str, message: str) -> None:
    key = line.split(" =", maxsplit=1)[0]
    old = next(old for old in RULE.splitlines() if old.startswith(f"{key} ="))
    problem = only_problem(HEAD + RULE.replace(old, line))
    assert (problem.field, problem.line) == (field, 5 + RULE.splitlines().index(old))
    assert message in problem.message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('priority = "1"', "must be a whole number without quotes, like priority = 100"),
        ("priority = 1.5", "not a number"),
        ("priority = true", "not true or false"),
        ("priority = 1000001", "must be from -1000000 to 1000000"),
        ("priority = -1000001", "must be from -1000000 to 1000000"),
        ('status = "off"', 'must be "active" or "disabled"'),
        ("status = false", 'must be "active" or "disabled"'),
        ('free = "true"', "must be true or false, without quotes, not a text"),
        ("free = true", "is above 0 in a rule that says free = true"),
        ('scene = ""', "is empty"),
        ("description = 1", "must be a text in quotes"),
        ('description = "' + "x" * 1001 + '"', "at most 1000 are allowed"),
        ('currency = "usd"', '"usd" is not a currency code like USD, EUR or CNY'),
        ('currency = "$"', "is not a currency code"),
        ("currency = 1", "must be a text in quotes"),
        ('credits_per_unit = "0"', "is 0, which makes all free: write how many credits 1 unit"),
        ('credits_per_unit = "x"', '"x" is not a price'),
        ("credits_per_unit = 7", "must be in quotes"),
        ('currency = "CNY"', "is CNY, but the book's credits_per_unit is for USD: add"),
        ('ouptut = "1"', "unknown key; did you mean output?"),
        ('Input = "1"', "unknown key; did you mean input?"),
        ("colour = 1", "unknown key; known here are id, description, scene"),
        ("tiers = []", "must be a list of tables, like tiers = [{ over_input_tokens = 200000"),
        ("tiers = {}", "must be a list of tables"),
        ("tiers = [1]", "entry 1 must be a table, like { over_input_tokens"),
        ("tiers = [" + "{}," * 51 + "]", "has 51 entries; at most 50 are allowed"),
        ('tiers = [{ input = "1" }]', "either over_input_tokens (more than so many) or from_input"),
        (
            'tiers = [{ over_input_tokens = 1, from_input_tokens = 2, input = "1" }]',
            "either over_input_tokens",
        ),
        ("tiers = [{ over_input_tokens = 1 }]", "a tier without a price changes nothing"),
        (
            'tiers = [{over_input_tokens=9, input="1"}, {from_input_tokens=10, input="1"}]',
            "two tiers begin at 10 input tokens: keep one",
        ),
        ('tiers = [{ over_input_tokens = 0, input = "1" }]', "must be a number of tokens"),
        ('tiers = [{ from_input_tokens = true, input = "1" }]', "must be a number of tokens"),
        ('tiers = [{ from_input_tokens = "9", input = "1" }]', "must be a number of tokens"),
        ('tiers = [{ from_input_tokens = 1000000000, input = "1" }]', "must be a number of"),
        ("tiers = [{ from_input_tokens = 1, input = 1 }]", "must be in quotes, to stay exact"),
        ('tiers = [{ from_input_tokens = 1, inptu = "1" }]', "did you mean input?"),
        ('tiers = [{ from_input_tokens = 1, per_call = "1" }]', "unknown key"),
        ("hours = []", "must be a list of tables, like hours = [{ days ="),
        ('hours = [{ from = "1:00", to = "02:00", multiply = "2" }]', '"1:00" is no time of day'),
        ('hours = [{ from = "24:00", to = "02:00", multiply = "2" }]', '"24:00" is no time'),
        ('hours = [{ from = "01:00", to = "24:01", multiply = "2" }]', '"24:01" is no time'),
        ('hours = [{ from = "01:00", to = "02:60", multiply = "2" }]', '"02:60" is no time'),
        ('hours = [{ from = "01:00", to = "01:00", multiply = "2" }]', "is the same as from"),
        ("hours = [{ from = 07:00:00, to = '02:00', multiply = '2' }]", "must be a text in quotes"),
        ('hours = [{ to = "02:00", multiply = "2" }]', "is missing; write for example from ="),
        ('hours = [{ from = "01:00", multiply = "2" }]', "is missing; write for example to ="),
        ('hours = [{ from = "01:00", to = "02:00" }]', "is missing; write for example multiply ="),
        (
            'hours = [{ days = "mon", from = "01:00", to = "02:00", multiply = "2" }]',
            '"mon" names no days: write for example "Mon-Fri"',
        ),
        (
            'hours = [{ days = "Mon-", from = "01:00", to = "02:00", multiply = "2" }]',
            '"Mon-" names no days',
        ),
        (
            'hours = [{ tz = "Mars/Base", from = "01:00", to = "02:00", multiply = "2" }]',
            '"Mars/Base" is no time zone',
        ),
        (
            'hours = [{ tz = "../etc/passwd", from = "01:00", to = "02:00", multiply = "2" }]',
            "is no time zone",
        ),
        (
            'hours = [{ tz = "America", from = "01:00", to = "02:00", multiply = "2" }]',
            '"America" is no time zone',
        ),
        (
            'hours = [{ from = "01:00", to = "02:00", multiply = "0" }]',
            '"0" is no factor: write how many times the price counts, above 0 and at most 1000',
        ),
        (
            'hours = [{ from = "01:00", to = "02:00", multiply = "1000.1" }]',
            '"1000.1" is no factor',
        ),
        ('hours = [{ from = "01:00", to = "02:00", multiply = 2 }]', "must be in quotes"),
        (
            'hours = [{ from = "01:00", to = "02:00", multiply = "2", zzz = "3" }]',
            "unknown key; known here are days, tz, from, to, multiply",
        ),
        ("service_tiers = {}", "must be a table of factors, like service_tiers = {"),
        ("service_tiers = []", "must be a table of factors"),
        ('service_tiers = { auto = "1" }', "always counts once: leave it out"),
        ('service_tiers = { default = "2" }', "always counts once: leave it out"),
        ('service_tiers = { flex = "0.000" }', '"0.000" is no factor'),
        ('service_tiers = { "a b" = "1" }', "is no name of a service tier"),
        (
            "service_tiers = { " + ", ".join(f't{n} = "1"' for n in range(21)) + " }",
            "has over 20 entries",
        ),
        ('cache_write_5m = "-1"', '"-1" is not a price'),
        ('minimum_charge = "x"', '"x" is not a price'),
        ("per_image = 1", "must be in quotes"),
        ("valid_until = 2027-01-01", "must be a date and time with its zone"),
        ("valid_from = 1969-12-31T23:59:59Z", "must lie between the years 1970 and 9000"),
        ("valid_from = 9999-12-31T23:59:59-12:00", "must lie between the years"),
    ],
)
def test_a_wrong_optional_key_is_told_with_its_line(line: str, message: str) -> None:
    problems = problems_of(HEAD + "\n# a comment\n" + RULE + line + "\n")
    assert any(message in problem.message for problem in problems)
    assert {problem.rule for problem in problems} == {"a"}
    # free = true is told at the prices that contradict it.
    assert {problem.line for problem in problems} == ({11, 12} if "free = true" in line else {13})


@pytest.mark.parametrize("key", ["id", "provider", "model", "input", "output"])
def test_a_missing_key_is_told_at_the_rule(key: str) -> None:
    text = "\n".join(line for line in RULE.splitlines() if not line.startswith(f"{key} ="))
    problem = only_problem(HEAD + text)
    assert (problem.line, problem.field) == (5, key)
    assert problem.message.startswith(f"is missing; write for example {key} = ")


def test_prices_of_zero_must_say_free() -> None:
    problem = only_problem(HEAD + RULE.replace("2.50", "0").replace("10.00", "0.000"))
    assert (problem.line, problem.field) == (9, "input")
    assert "free = true if it is free" in problem.message


@pytest.mark.parametrize(
    ("head", "field", "message"),
    [
        ("", "book", "is missing; a price book begins with [book]"),
        ("book = 1\n", "book", "must be one table: write [book], in single brackets"),
        ("[[book]]\n", "book", "must be one table"),
        (HEAD.replace('name = "test"\n', ""), "name", "is missing; write for example name ="),
        (HEAD.replace('currency = "USD"\n', ""), "currency", "is missing"),
        (HEAD.replace('credits_per_unit = "100"\n', ""), "credits_per_unit", "is missing"),
        (HEAD.replace('"100"', '"0.0"'), "credits_per_unit", "write how many credits 1 USD is"),
        (HEAD.replace('"test"', '""'), "name", "is empty"),
        (HEAD + 'valid = "x"\n', "valid", "unknown key; known here are name, currency"),
        (HEAD + "tiers = 1\n", "tiers", "unknown key"),
        (HEAD + 'id = "x"\n', "id", "unknown key"),
        (HEAD + "effective_from = 2026-12-01\n", "effective_from", "must be a date and time"),
        (HEAD + "effective_from = 2026-12-01T00:00:00\n", "effective_from", "with its zone"),
        (HEAD + 'effective_from = "2026-12-01T00:00:00Z"\n', "effective_from", "without quotes"),
    ],
)
def test_a_wrong_head_is_told(head: str, field: str, message: str) -> None:
    problem = only_problem(head + RULE)
    assert problem.field == field
    assert problem.rule == ""
    assert message in problem.message
    assert problem.line == 0 if not head else problem.line > 0


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ("", "there is no rule, so that every call would be refused; add a [[rule]]"),
        ("[rule]\nid = 'a'\n", "must be a list of tables: write [[rule]], in double brackets"),
        ("[[rules]]\n", "there is no rule"),
        ("[[rules]]\n", "unknown key; did you mean rule?"),
        ("[[rule]]\n" * (RULES_MAX + 1), "there are 20001 rules; at most 20000 are allowed"),
    ],
)
def test_a_book_without_proper_rules_is_refused(rules: str, message: str) -> None:
    assert any(message in problem.message for problem in problems_of(HEAD + rules))


def test_an_entry_that_is_no_table_is_refused() -> None:
    problem = only_problem("rule = [1]\n" + HEAD)
    assert (problem.line, problem.field) == (1, "rule")
    assert problem.message == "entry 1 must be a table: write [[rule]]"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("[book]\nname = \n", 2),
        ("[book]\nname = 'a'\nname = 'b'\n", 3),
        ('[book]\nname = "a\n', 2),
        ('[book]\n\nname = """a', 3),
        ("x = " + "[" * 20_000, 0),
        ("x = " + "1" * 5_000, 0),
        ("\x00", 1),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(text: str, line: int) -> None:
    problem = only_problem(text)
    assert problem.line == line
    assert problem.message.startswith("this is not TOML: ")


def test_a_huge_text_is_not_read() -> None:
    assert "longer than 6000000 characters" in only_problem("#" * (BOOK_CHARACTERS_MAX + 1)).message


def test_strange_keys_are_shown_safely() -> None:
    problems = problems_of(HEAD + RULE + '"a\\nb" = 1\n"' + "k" * 300 + '" = 1\n')
    assert [problem.field for problem in problems] == ["'a\\nb'", "'" + "k" * 40 + "'"]
    assert [problem.line for problem in problems] == [11, 12]


def test_all_problems_are_told_in_the_order_of_lines() -> None:
    problems = problems_of(
        HEAD.replace('"100"', "100") + RULE.replace('"2.50"', "2.5").replace('"a"', '"a b"')
    )
    assert [(problem.line, problem.field) for problem in problems] == [
        (4, "credits_per_unit"),
        (6, "id"),
        (9, "input"),
    ]
    assert str(problems[0]).startswith(
        "line 4, column 1: error: credits_per_unit: must be in quotes"
    )


def test_a_problem_is_one_line() -> None:
    bare = Problem(level="warning", line=0, rule="", field="", message="m")
    assert str(bare) == "warning: m"
    full = Problem(level="error", line=3, rule="r", field="f", message="m")
    assert str(full) == 'line 3: error: rule "r": f: m'


def test_an_id_may_stand_once() -> None:
    problem = only_problem(HEAD + RULE + RULE.replace("gpt-4o", "o3"))
    assert (problem.line, problem.rule, problem.field) == (12, "a", "id")
    assert problem.message == "the rule at line 5 has the same id: choose another"


def two_rules(first: str, second: str) -> str:
    prices = 'input = "1"\noutput = "1"\n'
    return f'{HEAD}[[rule]]\nid = "a"\n{prices}{first}\n[[rule]]\nid = "b"\n{prices}{second}\n'


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('provider = "p"\nmodel = "m"', 'provider = "p"\nmodel = "m"'),
        ('provider = "p"\nmodel = "ab*"', 'provider = "p"\nmodel = "*yz"'),
        ('provider = "*"\nmodel = "m"', 'provider = "**"\nmodel = "m"'),
        ('provider = "p"\nmodel = "a?c"', 'provider = "p"\nmodel = "ab?"'),
        (
            'scene = "*t"\nprovider = "p"\nmodel = "m"',
            'scene = "a*"\nprovider = "p"\nmodel = "m"',
        ),
    ],
)
def test_a_tie_is_refused(first: str, second: str) -> None:
    problem = only_problem(two_rules(first, second))
    assert (problem.rule, problem.field) == ("b", "model")
    assert problem.line > 10
    assert 'ties with rule "a" at line 5' in problem.message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('provider = "p"\nmodel = "m"', 'provider = "p"\nmodel = "n"'),
        ('provider = "p"\nmodel = "m"', 'provider = "q"\nmodel = "m"'),
        ('provider = "p"\nmodel = "ab*"', 'provider = "p"\nmodel = "ac*"'),
        ('provider = "p*"\nmodel = "m"', 'provider = "q*"\nmodel = "m"'),
        (
            'scene = "a*"\nprovider = "p"\nmodel = "m"',
            'scene = "b*"\nprovider = "p"\nmodel = "m"',
        ),
        ('provider = "p"\nmodel = "m"', 'provider = "p"\nmodel = "m"\nstatus = "disabled"'),
        ('provider = "p"\nmodel = "m"', 'provider = "p"\nmodel = "m"\npriority = 1'),
        ('provider = "p"\nmodel = "m*"', 'provider = "p"\nmodel = "m"'),
        # Not as specific in one field each, yet the scene decides.
        ('provider = "p"\nmodel = "*"', 'scene = "a"\nprovider = "*"\nmodel = "*"'),
    ],
)
def test_rules_of_which_one_wins_do_not_tie(first: str, second: str) -> None:
    assert len(parse_book(two_rules(first, second)).rules) == 2


def test_a_long_book_is_read_in_reasonable_time() -> None:
    rules = "".join(
        RULE.replace('"a"', f'"r{number}"').replace("gpt-4o", f"model-{number}")
        for number in range(1_000)
    )
    assert len(parse_book(HEAD + rules).rules) == 1_000


DECIMALS = st.from_regex(r"[0-9]{1,9}(\.[0-9]{1,12})?", fullmatch=True)


@given(DECIMALS, DECIMALS, DECIMALS, DECIMALS, DECIMALS, DECIMALS)
def test_rates_are_exact_and_the_denominator_least(
    price_in: str, cached: str, out: str, reasoning: str, call: str, unit: str
) -> None:
    if Fraction(unit) == 0 or not any(map(Fraction, (price_in, cached, out, reasoning, call))):
        return
    rule = rule_of(
        f'cached_input = "{cached}"\nreasoning = "{reasoning}"\nper_call = "{call}"\n'
        f'credits_per_unit = "{unit}"\n',
        input=f'"{price_in}"',
        output=f'"{out}"',
    )
    found = rule.rates
    rates = (found.input, found.cached_input, found.output, found.reasoning)
    for rate, text in zip(rates, (price_in, cached, out, reasoning), strict=True):
        assert Fraction(rate, rule.denominator) == Fraction(text) * Fraction(unit)
    assert Fraction(rule.fees.call, rule.denominator) == Fraction(call) * Fraction(unit) * 1_000_000
    assert str(rule.denominator).strip("0") == "1"
    assert rule.denominator == 1 or any(number % 10 for number in (*rates, rule.fees.call))


@given(
    st.text(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                *HEAD.splitlines(),
                *RULE.splitlines(),
                "free = true",
                "id = 1",
                "x = [",
                "]",
                '"""',
                "[rule.a]",
                "[[rule]]",
                "input = {}",
            ]
        ),
        max_size=14,
    ).map("\n".join)
)
def test_any_text_is_read_or_refused(text: str) -> None:
    reading = read_book(text)
    assert (reading.book is None) == bool(reading.problems)
    assert [problem for problem in lint(text) if problem.level == "error"] == [*reading.problems]
    assert all(0 <= problem.line <= text.count("\n") + 1 for problem in reading.problems)
