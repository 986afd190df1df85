"""The guide to prices says what is true: each call in it costs what it says, by the book above it."""

import ast
import math
import operator
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Final

import msgspec
import pytest

from llm_gateway.cli.prices import prices as prices_command
from pricing_rules.book import Book, parse_book
from pricing_rules.lint import lint
from pricing_rules.match import match
from pricing_rules.price import breakdown, factors_of, price
from pricing_rules.rates import PARENTS
from pricing_rules.usage import Units, Usage

GUIDE: Final = (Path(__file__).parents[1] / "docs" / "guides" / "pricing.md").read_text("utf-8")
NOON: Final = "2026-12-09T12:00:00Z"  # a Wednesday, for calls whose time does not matter


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """A line of a table: a call, the formula, the result, and the rule if it is named."""

    book: Book
    call: dict[str, str]
    formula: str
    result: int
    rule: str


def _rows(text: str) -> Iterator[tuple[str, ...]]:
    for line in text.split("\n"):
        yield tuple(cell.strip(" |") for cell in line.split(" | "))


def examples() -> list[Example]:
    found: list[Example] = []
    book: Book | None = None
    for part in re.split(r"^```", GUIDE, flags=re.MULTILINE):
        if part.startswith("toml\n"):
            book = parse_book(part.removeprefix("toml\n"))
        for row in _rows(part):
            if not row[0].startswith("`provider=") and not row[0].startswith("`scene="):
                continue
            assert book is not None
            call = dict(word.split("=", 1) for word in row[0].strip("`").split())
            rule = row[3].strip("`") if len(row) > 3 else ""
            found.append(
                Example(book=book, call=call, formula=row[1], result=int(row[2]), rule=rule)
            )
    return found


EXAMPLES: Final = examples()
_OPERATORS: Final[dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]]] = {
    ast.Add: operator.add,
    ast.Mult: operator.mul,
}


def reckon(formula: str) -> Fraction:
    """A sum of products of decimals, exactly."""

    def value(node: ast.expr) -> Fraction:
        match node:
            case ast.BinOp(left=left, op=op, right=right):
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Constant(value=str(text)):
                return Fraction(text)
            case _:
                raise AssertionError(ast.dump(node))

    quoted = re.sub(r"[0-9.]+", lambda number: f'"{number[0]}"', formula.replace(" x ", " * "))
    return value(ast.parse(quoted, mode="eval").body)


def test_the_guide_has_examples_of_all_that_has_a_price() -> None:
    assert len(EXAMPLES) >= 20
    used = {name for example in EXAMPLES for name in example.call}
    assert {"cached_input", "cache_write_1h", "reasoning", "searches", "seconds", "at"} <= used


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: " ".join(each.call.values()))
def test_a_call_costs_what_the_guide_says(example: Example) -> None:
    call = example.call
    at = round(datetime.fromisoformat(call.get("at", NOON)).timestamp() * 1000)
    scene = call.get("scene", "any")
    rule = match(example.book, scene, call["provider"], call["model"], at)
    assert rule is not None
    assert example.rule in ("", rule.id)
    numbers = {name: int(text) for name, text in call.items() if text.isdigit()}
    usage = msgspec.convert(numbers, Usage)
    units = msgspec.convert(numbers, Units)
    known = {*Usage.__struct_fields__, *Units.__struct_fields__}
    assert set(call) <= {*known, "scene", "provider", "model", "at", "service_tier"}
    factors = factors_of(rule, at, call.get("service_tier"))
    assert price(rule, usage, factors=factors, units=units) == example.result
    assert breakdown(rule, usage, factors=factors, units=units).amount == example.result
    assert math.ceil(reckon(example.formula)) == example.result


def test_the_books_of_the_guide_are_good_but_for_the_trap() -> None:
    texts = re.findall(r"^```toml\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(texts) == 6
    told = [[(p.field, p.message) for p in lint(text)] for text in texts]
    assert [len(each) for each in told] == [0, 0, 0, 0, 0, 2]
    assert [field for field, _ in told[-1]] == ["input", "output"]
    assert all("looks like a price per token" in message for _, message in told[-1])


def test_the_guide_says_as_what_a_price_left_out_costs() -> None:
    table = dict(
        row[:2]
        for row in _rows(GUIDE.partition("| left out |")[2].partition("\n\n")[0])
        if len(row) == 2
    )
    told = {
        name: tuple(re.findall(r"`(\w+)`", as_what))
        for names, as_what in table.items()
        for name in re.findall(r"`(\w+)`", names)
    }
    assert told == dict(PARENTS)


def test_commands_of_the_guide_exist() -> None:
    named = set(re.findall(r"llm-gateway\s+prices (\w+)", GUIDE))
    assert {"lint", "diff", "upload", "activate", "rollback", "list", "explain"} <= named
    assert named | {"export"} <= set(prices_command.commands)
