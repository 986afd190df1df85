"""What is kept of a provider's usage object: its numbers."""

from llm_gateway.usage_report import UsageReader


def raw_of(usage: object) -> bytes:
    reader = UsageReader()
    reader.read({"usage": usage})
    return reader.raw


def test_numbers_are_kept_at_every_depth() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.5, "details": {"cached": 1}}
    kept = b'{"prompt_tokens":3,"completion_tokens":4,"cost":0.5,"details":{"cached":1}}'
    assert raw_of(usage) == kept


def test_text_is_dropped_wherever_it_stands() -> None:
    usage = {
        "prompt_tokens": 3,
        "completion_tokens": 4,
        "echo": "the prompt itself",
        "list": ["the prompt itself", {"x": "the prompt itself", "y": 1}],
        "the prompt itself": 1,
    }
    assert raw_of(usage) == b'{"prompt_tokens":3,"completion_tokens":4,"list":[{"y":1}]}'


def test_lone_surrogate_cannot_break_it() -> None:
    assert b'"prompt_tokens":3' in raw_of({"prompt_tokens": 3, "\ud800": "\ud800"})
