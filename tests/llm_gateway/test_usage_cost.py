"""The cost in `usage`: one number more, and no other byte moved."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.usage_cost import Bill, with_cost, with_cost_renamed
from pricing_rules.usage import Usage

BILL = Bill(micro_credits=320, usage=Usage(input=60, cached_input=40, output=20, reasoning=5))
OWN = (
    b'{"prompt_tokens":100,"completion_tokens":25,"total_tokens":125,'
    b'"prompt_tokens_details":{"cached_tokens":40},'
    b'"completion_tokens_details":{"reasoning_tokens":5},"cost":0.00032}'
)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b'{"usage":{"a":1}}', b'{"usage":{"a":1,"cost":0.00032}}'),
        (b'{"usage":{}}', b'{"usage":{"cost":0.00032}}'),
        (b' { "usage" : {\n "a" : [ 1 ]\n }\n}\n', b' { "usage" : {\n "a" : [ 1 ],"cost":0.00032\n }\n}\n'),
        # only the answer's own usage, not one within it
        (b'{"x":{"usage":{"a":1}},"usage":{"b":2}}', b'{"x":{"usage":{"a":1}},"usage":{"b":2,"cost":0.00032}}'),
        (rb'{"x":"\"usage\":{}","usage":{}}', rb'{"x":"\"usage\":{}","usage":{"cost":0.00032}}'),
        # the one that readers go by
        (b'{"usage":{"a":1},"usage":{"b":2}}', b'{"usage":{"a":1},"usage":{"b":2,"cost":0.00032}}'),
        (rb'{"\u0075sage":{"a":1}}', rb'{"\u0075sage":{"a":1,"cost":0.00032}}'),
        # none, or none that is an object
        (b"{}", b'{"usage":' + OWN + b"}"),
        (b'{"id":1 }', b'{"id":1,"usage":' + OWN + b" }"),
        (b'{"usage":null,"id":1}', b'{"usage":' + OWN + b',"id":1}'),
        (b'{"usage":[1],"id":1}', b'{"usage":' + OWN + b',"id":1}'),
        # what strict parsers refuse and providers send
        (b'{"usage":{"t":NaN}}', b'{"usage":{"t":NaN,"cost":0.00032}}'),
        (b'{"x":"\xe4\xbd","usage":{}}', b'{"x":"\xe4\xbd","usage":{"cost":0.00032}}'),
        (b'{"x":' + b"9" * 5000 + b',"usage":{}}', b'{"x":' + b"9" * 5000 + b',"usage":{"cost":0.00032}}'),
    ],
)  # fmt: skip
def test_cost_is_the_last_member_of_usage(answer: bytes, told: bytes) -> None:
    assert with_cost(answer, BILL) == told


@pytest.mark.parametrize(
    ("usage", "renamed", "added"),
    [
        (b'{"cost":0.5,"a":1', b'{"provider_cost":0.5,"a":1', b',"cost":0.00032'),
        (b'{"a":1, "cost" : null', b'{"a":1, "provider_cost" : null', b',"cost":0.00032'),
        (rb'{"c\u006fst":{"all":1}', b'{"provider_cost":{"all":1}', b',"cost":0.00032'),
        # renamed before, or by another gateway
        (b'{"provider_cost":2', b'{"provider_cost":2', b',"cost":0.00032'),
    ],
)
def test_the_providers_cost_is_kept_beside_ours(usage: bytes, renamed: bytes, added: bytes) -> None:
    for rest in (b"}}", b',"z":2}}', b' }\n,"id":1}'):
        tail, end = (rest[:-2], b"}}") if b"z" in rest else (b"", rest)
        answer = b'{"usage":' + usage + tail + end
        assert with_cost(answer, BILL) == b'{"usage":' + renamed + tail + added + end
        assert with_cost_renamed(answer) == b'{"usage":' + renamed + tail + end


def test_a_provider_cost_of_the_providers_own_is_no_place_for_another() -> None:
    answer = b'{"usage":{"provider_cost":2,"cost":1}}'
    assert with_cost(answer, BILL) == b'{"usage":{"provider_cost":2,"cost":0.00032}}'
    assert with_cost_renamed(answer) == answer


@pytest.mark.parametrize(
    "answer",
    [b"", b"[]", b"null", b'"usage"', b"<html>", b'{"usage":{}', b'{"usage":{}}{}', b'{"a":1,}',
     b"{1:2}", b"{,}", b'{"a" 1}', b'{"a":}', b'{"a":1 "b":2}', b'\xef\xbb\xbf{"usage":{}}',
     b'{"a":' + b"[" * 100_000, b"{", b'{"'],
)  # fmt: skip
def test_what_is_no_object_stays(answer: bytes) -> None:
    assert with_cost(answer, BILL) == answer
    assert with_cost_renamed(answer) == answer


@pytest.mark.parametrize(
    "answer", [b"{}", b'{"cost":1}', b'{"usage":null}', b'{"usage":[{"cost":1}]}']
)
def test_without_usage_nothing_is_renamed(answer: bytes) -> None:
    assert with_cost_renamed(answer) == answer


@pytest.mark.parametrize(
    ("micro_credits", "number"),
    [
        (0, b"0"),
        (1, b"0.000001"),
        (10, b"0.00001"),
        (1_000_000, b"1"),
        (10_000_000, b"10"),
        (1_500_000, b"1.5"),
        (123_456_789, b"123.456789"),
        (2**53 - 1, b"9007199254.740991"),
    ],
)
def test_the_number_is_printed_from_the_integer(micro_credits: int, number: bytes) -> None:
    bill = Bill(micro_credits=micro_credits, usage=Usage())
    assert with_cost(b'{"usage":{}}', bill) == b'{"usage":{"cost":' + number + b"}}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "cost", "a", 'b"', "{"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(
    answer=st.dictionaries(st.sampled_from(["usage", "cost", "x"]), JSON),
    indent=st.none() | st.integers(0, 2),
)
def test_any_answer_differs_in_its_cost_alone(
    answer: dict[str, object], indent: int | None
) -> None:
    body = json.dumps(answer, indent=indent).encode()
    told = json.loads(with_cost(body, BILL))
    usage = answer.get("usage")
    before = dict(usage) if isinstance(usage, dict) else json.loads(OWN)
    cost = told["usage"].pop("cost")
    assert cost == 0.00032
    if isinstance(usage, dict) and "cost" in usage:
        before["provider_cost"] = before["cost"]
    before.pop("cost", None)
    # By text, for NaN is not itself.
    assert json.dumps(told, sort_keys=True) == json.dumps(
        answer | {"usage": before}, sort_keys=True
    )


@given(st.binary(max_size=60))
def test_any_bytes_are_taken(answer: bytes) -> None:
    assert with_cost(answer, BILL) == answer or answer.strip().startswith(b"{")
