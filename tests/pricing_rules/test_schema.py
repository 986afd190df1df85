"""The JSON Schema that ships says what the parser says, as far as a schema can."""

import json
import tomllib
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import pricing_rules
from pricing_rules.book import parse_book, read_book
from pricing_rules.schema import book_schema, schema_text
from tests.support.json_schema import errors
from tests.support.price_books import HEAD, book_texts

SHIPPED = Path(pricing_rules.__file__).with_name("price-book.schema.json")
ROOT = Path(__file__).parents[2]
RULE = '[[rule]]\nid = "a"\nprovider = "p"\nmodel = "m"\ninput = "2.50"\noutput = "10.00"\n'


def as_json(text: str) -> object:
    """A document as an editor sees it: dates are texts."""
    return json.loads(json.dumps(tomllib.loads(text), default=datetime.isoformat))


def problems(text: str) -> list[str]:
    return list(errors(book_schema(), as_json(text)))


def test_the_file_that_ships_is_the_schema() -> None:
    assert SHIPPED.read_text("utf-8") == schema_text()
    assert json.loads(schema_text()) == book_schema()


def test_the_price_book_that_ships_is_valid() -> None:
    assert problems((ROOT / "prices.toml").read_text("utf-8")) == []


@given(book_texts())
def test_every_valid_book_is_valid_by_the_schema(texts: list[str]) -> None:
    text = "".join(texts)
    parse_book(text)
    assert problems(text) == []


@pytest.mark.parametrize(
    "line",
    [
        "colour = 1",
        "per_call = 1",
        'per_call = "-1"',
        'per_call = "1e3"',
        'per_call = "1234567890"',
        'per_call = "1.1234567890123"',
        'description = "a\\nb"',
        "priority = 1.5",
        "priority = true",
        "priority = 1000001",
        "priority = -1000001",
        'status = "off"',
        'free = "yes"',
        'currency = "usd"',
        'currency = "CN"',
        'credits_per_unit = "0.0"',
        'scene = ""',
        'scene = "' + "*a" * 17 + '"',
        "valid_from = 1",
        "tiers = []",
        "tiers = {}",
        'tiers = [{ input = "1" }]',
        "tiers = [{ over_input_tokens = 5 }]",
        'tiers = [{ over_input_tokens = 5, from_input_tokens = 5, input = "1" }]',
        'tiers = [{ over_input_tokens = 0, input = "1" }]',
        'tiers = [{ over_input_tokens = 5, per_call = "1" }]',
        "hours = []",
        'hours = [{ from = "01:00", to = "02:00" }]',
        'hours = [{ from = "1:00", to = "02:00", multiply = "2" }]',
        'hours = [{ from = "01:00", to = "24:30", multiply = "2" }]',
        'hours = [{ from = "24:00", to = "02:00", multiply = "2" }]',
        'hours = [{ from = "01:00", to = "02:00", multiply = "0" }]',
        'hours = [{ from = "01:00", to = "02:00", multiply = "1001" }]',
        'hours = [{ from = "01:00", to = "02:00", multiply = "2", days = "Montag" }]',
        'hours = [{ from = "01:00", to = "02:00", multiply = "2", tz = "../x" }]',
        "service_tiers = {}",
        'service_tiers = { default = "1" }',
        'service_tiers = { "a b" = "1" }',
        "service_tiers = { flex = 0.5 }",
    ],
)
def test_what_the_parser_refuses_the_schema_does_too(line: str) -> None:
    text = HEAD + RULE + line + "\n"
    assert read_book(text).book is None
    assert problems(text)


@pytest.mark.parametrize("key", ["id", "provider", "model", "input", "output"])
def test_what_must_be_there_must_be_there(key: str) -> None:
    text = "\n".join(line for line in RULE.split("\n") if not line.startswith(f"{key} ="))
    assert problems(HEAD + text)
    assert not problems(HEAD + text + "free = true") or key in ("id", "provider", "model")


@pytest.mark.parametrize("key", ["name", "currency", "credits_per_unit"])
def test_so_must_the_head(key: str) -> None:
    head = "\n".join(line for line in HEAD.split("\n") if not line.startswith(f"{key} ="))
    assert problems(head + RULE)
    assert problems(HEAD)


ADD = st.sampled_from(
    [
        'minimum_charge = "{}"',
        'hours = [{{ from = "01:00", to = "02:00", multiply = "{}" }}]',
        'hours = [{{ from = "{}", to = "02:00", multiply = "2" }}]',
        'hours = [{{ from = "01:00", to = "{}", multiply = "2" }}]',
        'hours = [{{ days = "{}", from = "01:00", to = "02:00", multiply = "2" }}]',
        'service_tiers = {{ "{}" = "2" }}',
        'service_tiers = {{ x = "{}" }}',
        "priority = {}",
        'status = "{}"',
    ]
)
TEXT = st.text("0123456789.:-MonFriSat, ef", max_size=8) | st.sampled_from(
    ["1000", "1000.0", "1000.1", "0.001", "24:00", "23:59", "Mon-Fri", "flex", "auto", "active"]
)


@given(ADD, TEXT)
def test_parser_and_schema_agree_on_one_value(line: str, value: str) -> None:
    text = HEAD + RULE + line.format(value) + "\n"
    reading = read_book(text)
    if reading.lines is None:
        return  # not TOML
    messages = " ".join(problem.message for problem in reading.problems)
    if "same as from" in messages or "spaces around" in messages:
        return  # beyond what a schema can say
    assert bool(problems(text)) == (reading.book is None), (messages, problems(text))
