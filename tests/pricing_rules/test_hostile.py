"""Hostile files are refused with a clear message, in bounded time and memory; odd ones never crash."""

import os
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing_rules.book import (
    BOOK_CHARACTERS_MAX,
    RULE_KEYS,
    RULES_MAX,
    BookError,
    parse_book,
    read_book,
)
from pricing_rules.diff import diff
from pricing_rules.export import dump_book, table_rows
from pricing_rules.index import INDEX_REST_MAX
from pricing_rules.lint import lint, review
from pricing_rules.match import explain, match
from pricing_rules.reader import PROBLEMS_MAX
from tests.support.price_books import HEAD, book_texts

ROOT = Path(__file__).parents[2]
TIMES_MAX = 4  # as long as the longest book that is in order; the worst takes about as long
BYTES_MAX = 700 * 1024 * 1024


def rule(number: int, *, model: str, more: str = "", provider: str = "p") -> str:
    return (
        f'[[rule]]\nid = "r{number}"\nprovider = "{provider}"\nmodel = "{model}"\ninput = "1"\n'
        f'output = "2"\n{more}\n'
    )


def letters(number: int) -> str:
    """A different short text for each number, all of one length."""
    return "".join(chr(97 + number // 26**place % 26) for place in range(4))


def filled(piece: str) -> str:
    return piece * (BOOK_CHARACTERS_MAX // len(piece))


HOSTILE = {
    "too long": ("#" * (BOOK_CHARACTERS_MAX + 1), "longer than"),
    "many lines": (filled("\n"), "more than 350000 lines"),
    "many keys": ("".join(f"k{n}=1\n" for n in range(300_000)), "there are 299"),
    "many unknown keys": (
        HEAD + rule(0, model="m", more="\n".join(f"inputt{n} = 1" for n in range(100_000))),
        "unknown key; did you mean input?",
    ),
    "many elements": ("x = [" + "1," * 700_000 + "]", "more than 350000 commas"),
    "a dotted key": (".".join("a" * 1_000_000) + " = 1", "more than 16 dots"),
    "many dotted keys": (
        "".join(f"k{n}.{'.'.join('a' * 15)} = 1\n" for n in range(30_000)),
        "more than 100000 dots outside of quotes: are the prices in quotes?",
    ),
    "many tables": ("".join(f"[a{n}]\n" for n in range(349_000)), "unknown key"),
    "many deep tables": ("[a.b.c.d.e.f]\n" * 340_000, "more than 100000 dots outside of quotes"),
    "many inline tables": ("x = [" + "{a=1}," * 340_000 + "]", "unknown key"),
    "a dotted header": ("[" + ".".join("a" * 1_000_000) + "]", "more than 16 dots"),
    "deep lists": ("x = " + "[" * 100_000 + "]" * 100_000, "this is not TOML"),
    "deeper lists": ("x = " + "[" * 1_000_000, "more than 350000 brackets"),
    "deep tables": ("x = " + "{a=" * 100_000 + "1" + "}" * 100_000, "this is not TOML"),
    "a huge integer": (HEAD + rule(0, model="m", more="priority = " + "9" * 4_000), "must be from"),
    "a longer integer": ("x = " + "1" * 1_000_000, "this is not TOML"),
    "a huge hexadecimal": ("x = 0x" + "f" * 1_000_000, "unknown key"),
    "a huge exponent": ("x = 1e99999999999999999999", "this is not TOML"),
    "a huge float": ("x = 1." + "1" * 1_000_000, "unknown key"),
    "an open string": ('x = "' + "a" * 1_000_000, "over 10000 characters; is it closed?"),
    "an open long string": ('x = """' + "a" * 1_000_000, "over 10000 characters; is it closed?"),
    "many escapes": ('x = """' + 'a\\"""' * 500_000, "more than 350000 backslashes"),
    "a long text of escapes": ('x = "' + "\\n" * 300_000 + '"', "over 10000 characters"),
    "a long text over lines": ('x = """' + "\\n\n" * 300_000 + '"""', "over 10000 characters"),
    "quotes that never close": (("." * 17 + '"' + '\\"' * 4_000 + "\n") * 40, "more than 16 dots"),
    "texts that almost close": ("x = [" + "''''''," * 340_000, "this is not TOML"),
    "many quotes": (filled('"'), "this is not TOML"),
    "keys twice": (HEAD + rule(0, model="m", more='input = "3"'), "Cannot overwrite a value"),
    "rules twice": (HEAD + rule(0, model="m") * 500, "has the same id: choose another"),
    "a price of 10^30": (HEAD + rule(0, model="m", more=f'per_call = "1{"0" * 30}"'), "at most 9"),
    "a negative price": (HEAD + rule(0, model="m", more='per_call = "-1"'), "is not a price"),
    "no number": (HEAD + rule(0, model="m", more='per_call = "nan"'), "is not a price"),
    "TOML's nan": (HEAD + rule(0, model="m", more="per_call = nan"), "must be in quotes"),
    "endless": (HEAD + rule(0, model="m", more="per_call = -inf"), "must be in quotes"),
    "a unit": (HEAD + rule(0, model="m", more='per_call = "1 USD"'), "is not a price"),
    "a currency sign": (HEAD + rule(0, model="m", more='per_call = "$1"'), "is not a price"),
    "other digits": (HEAD + rule(0, model="m", more='per_call = "１"'), "is not a price"),
    "many rules": (HEAD + "[[rule]]\n" * (RULES_MAX + 1), "at most 20000 are allowed"),
    "many empty rules": (HEAD + "[[rule]]\n" * RULES_MAX, "is missing; write for example id"),
    "a glob of stars": (HEAD + rule(0, model="*a" * 90), "has 90 wildcards; at most 16"),
    "globs that all tie": (
        HEAD + "".join(rule(n, model=f"*{letters(n)}*") for n in range(INDEX_REST_MAX)),
        "ties with rule",
    ),
    "globs of question marks": (
        HEAD + "".join(rule(n, model=f"?{letters(n)}?") for n in range(10_000)),
        "begin",
    ),
    "globs that are slow to compare": (
        HEAD
        + "".join(
            rule(2 * n, model=f"?{'a' * 90}{letters(n)}{'a' * 90}?")
            + rule(2 * n + 1, model=f"?{'a' * 90}*{letters(n)}{'a' * 90}")
            for n in range(2_000)
        ),
        "so many rules have patterns alike",
    ),
    "globs that no index helps with": (
        HEAD
        + "".join(rule(n, model=f"*{letters(n)}*", more=f"priority = {n}") for n in range(5_000)),
        "have patterns that both begin and end with a wildcard",
    ),
}


@pytest.fixture(scope="module")
def honest_seconds() -> float:
    """CPU time to read as many rules as a book may have: what a second is differs by machine.

    A quarter of them is read: the time grows with their number.
    """
    text = HEAD + "".join(
        rule(n, model=f"m-{n}", more=f'description = "{letters(n)}"\nper_call = "0.1"\n')
        for n in range(RULES_MAX // 4)
    )
    started = time.process_time()
    parse_book(text)
    return (time.process_time() - started) * 4


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_takes_no_longer_than_an_honest_one_may(
    name: str, honest_seconds: float
) -> None:
    text, message = HOSTILE[name]
    started = time.process_time()
    with pytest.raises(BookError) as refused:
        parse_book(text)
    seconds = time.process_time() - started
    assert any(message in problem.message for problem in refused.value.problems), (
        refused.value.problems[:3]
    )
    assert len(refused.value.problems) <= PROBLEMS_MAX + 1
    assert all(len(str(problem)) < 1_000 for problem in refused.value.problems)
    assert seconds < TIMES_MAX * honest_seconds


def test_a_hostile_file_takes_bounded_memory() -> None:
    program = (
        "import resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({BYTES_MAX}, {BYTES_MAX}))\n"
        "from pricing_rules.lint import lint\n"
        "print(len(lint(sys.stdin.read())))\n"
    )
    # Counting makes it several times as slow, and the rules are counted where they are tested.
    uncounted = {n: v for n, v in os.environ.items() if not n.startswith("COVERAGE_")}
    for name in ("many keys", "many empty rules", "many tables", "many inline tables"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=uncounted,
            input=HOSTILE[name][0],
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        )
        assert 0 < int(done.stdout) <= PROBLEMS_MAX + 1


@pytest.mark.parametrize(
    ("data", "line", "column"),
    [(b"\xff\xfe[\x00b\x00", 1, 1), (b'[book]\nname = "\xe9"\n', 2, 9), (b"\xc3", 1, 1)],
)
def test_what_is_not_utf8_is_told_where(data: bytes, line: int, column: int) -> None:
    (problem,) = lint(data)
    assert (problem.level, problem.line, problem.column) == ("error", line, column)
    assert problem.message.startswith("this is not UTF-8 text")


def test_bytes_are_read_like_text() -> None:
    text = HEAD + rule(0, model="模型")
    assert parse_book(text.encode()).rules == parse_book(text).rules
    assert parse_book(b"\xef\xbb\xbf" + text.encode()).rules == parse_book(text).rules
    assert parse_book(text.replace("\n", "\r\n")).rules == parse_book(text).rules


def test_a_problem_names_column_and_example() -> None:
    text = HEAD + rule(0, model="m", more="tiers = [{ over_input_tokens = 5,  output = 3 }]")
    (problem,) = lint(text.replace("\n", "\r\n"))[:1]
    found = next(p for p in lint(text) if p.level == "error")
    assert (found.line, found.column, found.field) == (11, 36, "tiers[0].output")
    assert found.rule == "r0"
    assert found.expected == "a decimal number in quotes, without sign or exponent"
    assert found.example == 'output = "3"'
    assert str(found).startswith('line 11, column 36: error: rule "r0": tiers[0].output: must be')
    assert problem.line > 0


def test_toml_errors_have_a_column() -> None:
    (problem,) = lint("[book]\nname = = 1\n")
    assert (problem.line, problem.column) == (2, 8)


def test_of_a_text_wrong_all_over_the_first_thousand_are_told() -> None:
    with pytest.raises(BookError) as refused:
        parse_book(HEAD + rule(0, model="m", more="\n".join(f"k{n} = 1" for n in range(1_500))))
    problems = refused.value.problems
    assert len(problems) == PROBLEMS_MAX + 1
    assert problems[-1].message == "there are 500 more errors"


@pytest.mark.parametrize("model", ["a" * 250, "a" * 249 + "b", "b" * 250])
def test_a_pathological_glob_matches_quickly(model: str) -> None:
    book = parse_book(
        HEAD
        + rule(0, model="*".join(["a" * 11] * 16) + "b")
        + rule(1, model="?".join(["a" * 11] * 8) + "*" + "*".join(["a" * 11] * 8) + "c")
    )
    started = time.process_time()
    assert match(book, "s", "p", model) is (book.rules[0] if model.endswith("ab") else None)
    assert len(explain(book, "s", "p", model)) == 2
    assert time.process_time() - started < 1


PIECES = st.sampled_from(
    [
        "[[rule]]",
        "[book]",
        "[rule.a]",
        "[[rule.tiers]]",
        "[rule.service_tiers]",
        *(f"{key} = " for key in RULE_KEYS),
        "over_input_tokens = ",
        "from = ",
        "days = ",
        '"1"',
        '"m*"',
        "1",
        "nan",
        "true",
        "2026-01-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "07:00:00",
        "[",
        "]",
        "{",
        "}",
        ",",
        "=",
        '"""',
        "'''",
        "\n",
        "\r\n",
        "#",
        "a.b.c = 1",
        "\x00",
    ]
)


@given(st.lists(PIECES, max_size=30).map("".join) | st.binary(max_size=60))
def test_any_text_is_read_or_refused(text: str | bytes) -> None:
    reading = read_book(text)
    assert (reading.book is None) == bool(reading.problems)
    assert all(str(problem) for problem in reading.problems)


QUOTED = st.sampled_from(
    [
        '""',
        "''",
        '"#"',
        r'"\""',
        r'"\\"',
        "'\\'",
        "'\"'",
        '"""a"""',
        '""""""',
        '"""\n"""',
        '""""a"""""',
        r'"""\""""""',
        '"""a""b\\\n"""',
        "''''''",
        "'''a'''''",
        "'''\n''b\\'''",
        "# it's \"\n''",
    ]
)


@given(st.lists(QUOTED, max_size=12), st.integers(0, 40))
def test_no_text_in_quotes_is_taken_for_a_long_one(quoted: list[str], dots: int) -> None:
    text = "x = [" + ",".join([*quoted, f'"{"." * dots}"']) + "]\n"
    assert tomllib.loads(text)
    found = read_book(text).problems
    assert [problem.field for problem in found] == ["book", "rule", "x"]
    assert "more than 16 dots" in read_book(f"{text}{'.'.join('a' * 18)} = 1").problems[0].message


VALUES = ['""', '"x"', "0", "-1", "1.5", "true", "[]", "{}", "[{}]", "{ a = 1 }", '"9e9"', '"１"']


@given(book_texts(), st.data())
def test_a_valid_book_with_one_fault_is_read_or_refused_at_its_place(
    texts: list[str], data: st.DataObject
) -> None:
    lines = "".join(texts).split("\n")
    number = data.draw(st.sampled_from([n for n, line in enumerate(lines) if " = " in line]))
    key = lines[number].partition(" = ")[0]
    lines[number] = f"{key} = {data.draw(st.sampled_from(VALUES))}"
    text = "\n".join(lines)
    result = review(text, now=1_800_000_000_000)
    errors = [problem for problem in result.problems if problem.level == "error"]
    assert (result.book is None) == bool(errors)
    for problem in errors:
        assert 1 <= problem.line <= len(lines)
        assert 1 <= problem.column <= len(lines[problem.line - 1]) + 1
        assert problem.message
    # Where the fault itself is one, it is told where it stands.
    if errors and not any(re.search("free|tie|below|currency", p.message) for p in errors):
        assert any(problem.line == number + 1 for problem in errors), (errors, lines[number])


REAL = ROOT.joinpath("prices.toml").read_bytes()
REAL_BOOK = parse_book(REAL)
REAL_HEAD, *REAL_RULES = REAL.split(b"[[rule]]")
SERVED = [("s", "openai", "gpt-4o"), ("s", "deepseek", "deepseek-flash"), ("s", "p", "m")]


@st.composite
def damaged_books(draw: st.DrawFn) -> bytes:
    """Some of the real rules, in which bytes were taken out, put in, doubled, moved or changed."""
    rules = draw(st.lists(st.sampled_from(REAL_RULES), min_size=1, max_size=6))
    data = REAL_HEAD + b"".join(b"[[rule]]" + rule for rule in rules)
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, len(data)))
        end = min(len(data), at + draw(st.integers(0, 30)))
        to = draw(st.integers(0, len(data)))
        put = draw(
            st.just(b"")
            | st.just(data[at:end] * 2)
            | st.binary(max_size=4)
            | PIECES.map(str.encode)
            | st.sampled_from(VALUES).map(str.encode)
        )
        data = data[:at] + put + data[end:]
        if draw(st.booleans()):
            data = data[:to] + data[at:end] + data[to:]
    return data


@given(damaged_books())
def test_a_damaged_book_is_read_linted_and_compared_or_refused(data: bytes) -> None:
    result = review(data, active=REAL_BOOK, served=SERVED, now=1_800_000_000_000)
    errors = [problem for problem in result.problems if problem.level == "error"]
    assert (result.book is None) == bool(errors)
    for problem in result.problems:
        assert str(problem)
        assert problem.in_file("f").startswith("f:")
        assert all(name in ("expected", "example") for name, _ in problem.hints())
    if result.book is None:
        with pytest.raises(BookError):
            parse_book(data)
        return
    there, back = diff(REAL_BOOK, result.book), diff(result.book, REAL_BOOK)
    assert [rule.id for rule in there.added] == [rule.id for rule in back.gone]
    assert there.unchanged == back.unchanged
    assert diff(result.book, parse_book(dump_book(result.book))).is_empty
    assert len(list(table_rows(result.book))) >= len(result.book.rules)
