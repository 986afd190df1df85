"""Token estimates, and that a vocabulary is used only where its file is at hand."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.events import UsageSource
from llm_gateway.tokens import TextMeasure, TokenCounter, estimate, measure

# Tokens of each text in o200k_base, counted once with that vocabulary.
COUNTED = (
    (
        (
            "The harbour was quiet when the last ferr"
            "y came in. A few people waited under the"
            " lamps, their collars turned up against "
            "the wind, and nobody spoke until the rop"
            "es were fast and the gangway was down."
        ),
        42,
    ),
    (
        (
            "港口很安静，最后一班渡轮靠岸的时候，只有几个人在路灯下等着。风很大，他们都把衣领"
            "竖了起来，直到缆绳系好、跳板放下，才有人开口说话。"
        ),
        58,
    ),
    (
        (
            "Der Hafen war still, als die letzte Fähr"
            "e einlief. Einige Leute warteten unter d"
            "en Laternen, und niemand sprach, bis die"
            " Leinen fest waren."
        ),
        33,
    ),
    (
        (
            "港は静かで、最後のフェリーが着いたとき、街灯の下で待っていたのは数人だけだった。"
            "風が強く、誰も口をきかなかった。"
        ),
        44,
    ),
    (
        (
            "В гавани было тихо, когда пришёл последн"
            "ий паром. Несколько человек ждали под фо"
            "нарями, и никто не говорил, пока не закр"
            "епили канаты."
        ),
        36,
    ),
    (
        (
            "def settle(rows):\n    total = 0\n    for "
            "row in rows:\n        if row.status == 'a"
            "pplied' and row.amount != 0:\n           "
            " total += row.amount\n    return total\n"
        ),
        42,
    ),
    (
        (
            '{"id":"a-17","items":[{"sku":"X100","qua'
            'ntity":2,"price":"19.90"},{"sku":"Y7","q'
            'uantity":1,"price":"4.50"}],"paid":true,'
            '"note":null}'
        ),
        49,
    ),
    (
        "2024,118.5,97.25,103.0\n2025,121.75,99.5,110.25\n2026,130.0,101.5,118.75\n",
        45,
    ),
)


@pytest.mark.parametrize(("text", "tokens"), COUNTED)
def test_estimate_is_near(text: str, tokens: int) -> None:
    assert abs(estimate(measure(text.encode())) - tokens) <= tokens * 0.25


def test_classes_by_hand() -> None:
    assert measure("ab 1,é你😀".encode()) == TextMeasure(3, 2, 2, 7)
    assert measure(b"") == TextMeasure()
    # (3 x 195 + 2 x 590 + 2 x 150 + 7 x 255) / 1000 = 3.85
    assert estimate(TextMeasure(3, 2, 2, 7)) == 4
    assert estimate(TextMeasure()) == 0
    assert estimate(TextMeasure(letters=1)) == 1


@given(st.binary(), st.binary())
def test_measures_add_up(one: bytes, other: bytes) -> None:
    both = measure(one) + measure(other)
    assert both.total == len(one) + len(other)
    assert min(both.letters, both.symbols, both.two_byte, both.long) >= 0


@given(st.text(), st.text())
def test_measure_of_a_text_is_that_of_its_parts(one: str, other: str) -> None:
    assert measure((one + other).encode()) == measure(one.encode()) + measure(other.encode())


class TestVocabulary:
    """Never from the network: pytest-socket would stop it."""

    @pytest.fixture(autouse=True)
    def directory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
        return tmp_path

    def test_no_file(self) -> None:
        counter = TokenCounter()
        assert not counter.can_count("gpt-4o")
        assert counter.count("gpt-4o", b"hello there") == (3, UsageSource.BYTES)

    def test_damaged_file(self, directory: Path) -> None:
        (directory / "fb374d419588a4632f3f557e76b4b70aebbca790").write_bytes(b"IQ== 0\n")
        assert not TokenCounter().can_count("gpt-4o")
        assert (directory / "fb374d419588a4632f3f557e76b4b70aebbca790").exists()

    def test_cache_switched_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
        assert not TokenCounter().can_count("gpt-4o")

    @pytest.mark.parametrize("model", ["claude-sonnet-4", "deepseek-chat", "echo", "", "o"])
    def test_other_vendors_models(self, model: str) -> None:
        assert not TokenCounter().can_count(model)


def test_file_names_are_those_of_tiktoken() -> None:
    base = "https://openaipublic.blob.core.windows.net/encodings/"
    for name, file in (
        ("o200k_base", "fb374d419588a4632f3f557e76b4b70aebbca790"),
        ("cl100k_base", "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"),
    ):
        address = f"{base}{name}.tiktoken"
        assert hashlib.sha1(address.encode(), usedforsecurity=False).hexdigest() == file
