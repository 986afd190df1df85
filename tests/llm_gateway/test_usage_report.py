"""How each provider's usage is read, reports of one answer folded into one, and what is kept."""

from collections.abc import Mapping

import pytest

from llm_gateway.usage_report import (
    RAW_USAGE_BYTES_MAX,
    UsageReader,
    is_all_zero,
    merge_usage,
    read_usage,
    usage_object,
)
from pricing_rules.usage import ReportedUsage, Usage

OPENAI = {
    "prompt_tokens": 100,
    "completion_tokens": 50,
    "total_tokens": 150,
    "prompt_tokens_details": {
        "cached_tokens": 40,
        "cache_write_tokens": 30,
        "audio_tokens": 5,
        "image_tokens": 6,
    },
    "completion_tokens_details": {"reasoning_tokens": 20, "audio_tokens": 7},
}
OPENAI_READ = ReportedUsage(
    prompt=100,
    completion=50,
    total=150,
    cached=40,
    cache_write_5m=30,
    reasoning=20,
    audio_input=5,
    image_input=6,
    audio_output=7,
)
# The names of the Responses API for the same counts.
RESPONSES = {
    "input_tokens": 100,
    "output_tokens": 50,
    "total_tokens": 150,
    "input_tokens_details": OPENAI["prompt_tokens_details"],
    "output_tokens_details": OPENAI["completion_tokens_details"],
}
GEMINI = {
    "promptTokenCount": 100,
    "candidatesTokenCount": 30,
    "totalTokenCount": 150,
    "cachedContentTokenCount": 40,
    "thoughtsTokenCount": 20,
}
CHAT = {"prompt_tokens": 7, "completion_tokens": 3}
CHAT_READ = ReportedUsage(prompt=7, completion=3)


def told(prompt: int, completion: int, total: int | None = None) -> ReportedUsage:
    return ReportedUsage(prompt=prompt, completion=completion, total=total)


class TestShapes:
    """One row per way in which a provider names a count."""

    @pytest.mark.parametrize(
        ("usage", "read"),
        [
            pytest.param(OPENAI, OPENAI_READ, id="OpenAI chat"),
            pytest.param(RESPONSES, OPENAI_READ, id="OpenAI responses"),
            pytest.param(
                GEMINI,
                ReportedUsage(prompt=100, completion=30, total=150, cached=40, reasoning=20),
                id="Gemini's own",
            ),
            pytest.param(
                {"completion_tokens": 3, "prompt_cache_hit_tokens": 4},
                ReportedUsage(completion=3, cached=4),
                id="DeepSeek, hits alone are not the prompt",
            ),
            pytest.param(
                {"completion_tokens": 3, "prompt_cache_miss_tokens": 5},
                ReportedUsage(completion=3),
                id="DeepSeek, misses alone are not the prompt",
            ),
            pytest.param(
                {"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5},
                ReportedUsage(prompt=9, cached=4),
                id="DeepSeek, prompt left out",
            ),
            pytest.param(
                {"prompt_cache_hit_tokens": 0, "prompt_cache_miss_tokens": 5},
                ReportedUsage(prompt=5, cached=0),
                id="DeepSeek, no hit",
            ),
            pytest.param(
                {"prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 0},
                ReportedUsage(prompt=4, cached=4),
                id="DeepSeek, no miss",
            ),
            pytest.param(
                {"prompt_cache_hit_tokens": 9, "prompt_cache_miss_tokens": -5},
                ReportedUsage(prompt=-1, cached=9),
                id="DeepSeek, a negative miss makes the prompt nonsense",
            ),
            pytest.param(
                {"prompt_cache_hit_tokens": -4, "prompt_cache_miss_tokens": 9},
                ReportedUsage(prompt=-1, cached=-4),
                id="DeepSeek, a negative hit makes the prompt nonsense",
            ),
            pytest.param(
                {"prompt_tokens": 7, "prompt_cache_hit_tokens": 4, "prompt_cache_miss_tokens": 5},
                ReportedUsage(prompt=7, cached=4),
                id="DeepSeek, a prompt that is told holds",
            ),
            pytest.param(
                {**CHAT, "cached_tokens": 2, "reasoning_tokens": 1},
                ReportedUsage(prompt=7, completion=3, cached=2, reasoning=1),
                id="cached and reasoning on top (Moonshot, Perplexity)",
            ),
            pytest.param(
                {**CHAT, "prompt_tokens_details": {"cache_creation_tokens": 2}},
                ReportedUsage(prompt=7, completion=3, cache_write_5m=2),
                id="cache_creation_tokens within the details",
            ),
            pytest.param(
                {**CHAT, "cache_creation": {"ephemeral_5m_input_tokens": 2}},
                ReportedUsage(prompt=7, completion=3, cache_write_5m=2),
                id="cache writes for 5 minutes alone",
            ),
            pytest.param(
                {**CHAT, "cache_creation": {"ephemeral_1h_input_tokens": 2}},
                ReportedUsage(prompt=7, completion=3, cache_write_1h=2),
                id="cache writes for an hour alone",
            ),
            pytest.param(
                {
                    **CHAT,
                    "cache_creation": {"ephemeral_5m_input_tokens": 0},
                    "prompt_tokens_details": {"cache_write_tokens": 2},
                },
                ReportedUsage(prompt=7, completion=3, cache_write_5m=0),
                id="cache writes split by time hold against their sum (5 minutes)",
            ),
            pytest.param(
                {
                    **CHAT,
                    "cache_creation": {"ephemeral_1h_input_tokens": 2},
                    "prompt_tokens_details": {"cache_write_tokens": 2},
                },
                ReportedUsage(prompt=7, completion=3, cache_write_1h=2),
                id="cache writes split by time hold against their sum (an hour)",
            ),
            pytest.param(
                {**CHAT, "input_tokens": 70, "output_tokens": 30},
                CHAT_READ,
                id="both families of names: OpenAI's hold",
            ),
            pytest.param(
                {"prompt_tokens": None, "input_tokens": 7, "completion_tokens": 3},
                CHAT_READ,
                id="null leaves the word to the other name",
            ),
            pytest.param(
                {
                    **CHAT,
                    "prompt_tokens_details": None,
                    "input_tokens_details": {"cached_tokens": 2},
                },
                ReportedUsage(prompt=7, completion=3, cached=2),
                id="null details leave the word to the other name",
            ),
            pytest.param(
                {**CHAT, "prompt_tokens_details": [2], "completion_tokens_details": "x"},
                CHAT_READ,
                id="details that are no object say nothing",
            ),
            pytest.param(
                {**CHAT, "prompt_tokens_details": {"cached_tokens": 1}, "cached_tokens": 2},
                ReportedUsage(prompt=7, completion=3, cached=2),
                id="told in two places: the larger",
            ),
            pytest.param(
                {**CHAT, "prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 2},
                ReportedUsage(prompt=7, completion=3, cached=2),
                id="told in two places, once as zero: the larger",
            ),
            pytest.param(
                {**CHAT, "prompt_tokens_details": {"cached_tokens": -5}, "cached_tokens": 2},
                ReportedUsage(prompt=7, completion=3, cached=-5),
                id="told in two places, once as nonsense: nonsense",
            ),
            pytest.param({"total_tokens": 10}, ReportedUsage(total=10), id="the total alone"),
        ],
    )
    def test_each_count_is_read(self, usage: object, read: ReportedUsage) -> None:
        assert read_usage(usage) == read

    @pytest.mark.parametrize(
        "usage", [None, "n/a", 7, [7], {}, {"cost": 1}, {"prompt_tokens": None}]
    )
    def test_nothing_counted_is_no_report(self, usage: object) -> None:
        assert read_usage(usage) is None
        assert read_usage(usage, thoughts_in_total=True) is None

    @pytest.mark.parametrize(
        ("value", "count"),
        [
            (0, 0),
            (12.0, 12),
            (1e9, 1_000_000_000),
            (1_000_000_001.0, -1),
            (1e300, -1),
            (float("inf"), -1),
            (float("nan"), -1),
            (1.5, -1),
            ("12", -1),
            (True, -1),
            ([], -1),
            ({}, -1),
            (-7, -7),
        ],
    )
    def test_whole_number_or_nonsense(self, value: object, count: int) -> None:
        assert read_usage({"total_tokens": value}) == ReportedUsage(total=count)


class TestCacheBesideThePrompt:
    """Anthropic's input_tokens leave the cache out; a translation to OpenAI's names may or not."""

    @pytest.mark.parametrize(
        ("usage", "read"),
        [
            pytest.param(
                {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 2000,
                    "cache_creation_input_tokens": 300,
                    "cache_creation": {
                        "ephemeral_5m_input_tokens": 100,
                        "ephemeral_1h_input_tokens": 200,
                    },
                    "output_tokens": 50,
                },
                ReportedUsage(
                    prompt=2310,
                    completion=50,
                    total=2360,
                    cached=2000,
                    cache_write_5m=100,
                    cache_write_1h=200,
                ),
                id="reads and both kinds of writes",
            ),
            pytest.param(
                {"input_tokens": 10, "cache_creation_input_tokens": 300, "output_tokens": 50},
                ReportedUsage(prompt=310, completion=50, total=360, cache_write_5m=300),
                id="writes alone, for 5 minutes unless told",
            ),
            pytest.param(
                {"input_tokens": 10, "cache_read_input_tokens": 1, "output_tokens": 0},
                ReportedUsage(prompt=11, completion=0, total=11, cached=1),
                id="one token read, none put out",
            ),
            pytest.param(
                {"input_tokens": 0, "cache_read_input_tokens": 2000, "output_tokens": 50},
                ReportedUsage(prompt=2000, completion=50, total=2050, cached=2000),
                id="the whole prompt from the cache",
            ),
            pytest.param(
                {"input_tokens": 10, "cache_read_input_tokens": 2000},
                ReportedUsage(prompt=2010, cached=2000),
                id="the start of a stream: no output yet, so no total",
            ),
            pytest.param(
                {"input_tokens": 10, "cache_read_input_tokens": 0, "output_tokens": 50},
                ReportedUsage(prompt=10, completion=50, cached=0),
                id="no cache used: nothing to add",
            ),
            pytest.param(
                {"cache_read_input_tokens": 2000, "output_tokens": 50},
                ReportedUsage(completion=50, cached=2000),
                id="a prompt that is not told stays so",
            ),
        ],
    )
    def test_anthropics_own(self, usage: object, read: ReportedUsage) -> None:
        assert read_usage(usage) == read

    @pytest.mark.parametrize(
        ("usage", "prompt", "total"),
        [
            pytest.param(
                {"prompt_tokens": 5000, "completion_tokens": 50, "total_tokens": 7050},
                7000,
                7050,
                id="the total shows that the cache comes on top",
            ),
            pytest.param(
                {"prompt_tokens": 5000, "completion_tokens": 50, "total_tokens": 5050},
                5000,
                5050,
                id="the total shows that the prompt includes it",
            ),
            pytest.param(
                {"prompt_tokens": 5000, "completion_tokens": 50}, 5000, None, id="nothing shows it"
            ),
            pytest.param(
                {"prompt_tokens": 5000, "total_tokens": 7000},
                7000,
                None,
                id="a total of the input alone",
            ),
            pytest.param(
                {"prompt_tokens": 1999, "completion_tokens": 50, "total_tokens": 2049},
                3999,
                4049,
                id="a cache larger than the prompt cannot be in it",
            ),
            pytest.param(
                {"prompt_tokens": 2000, "completion_tokens": 50, "total_tokens": 2050},
                2000,
                2050,
                id="a cache as large as the prompt can",
            ),
        ],
    )
    def test_translated(self, usage: dict[str, int], prompt: int, total: int | None) -> None:
        read = read_usage({**usage, "cache_read_input_tokens": 2000})
        assert read == ReportedUsage(
            prompt=prompt, completion=usage.get("completion_tokens"), total=total, cached=2000
        )

    @pytest.mark.parametrize(
        ("usage", "read"),
        [
            pytest.param(
                {"input_tokens": -1, "cache_read_input_tokens": 2000, "output_tokens": 50},
                ReportedUsage(prompt=-1, completion=50, cached=2000),
                id="prompt",
            ),
            pytest.param(
                {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 2000,
                    "cache_creation_input_tokens": -5,
                    "output_tokens": 50,
                },
                ReportedUsage(prompt=10, completion=50, cached=2000, cache_write_5m=-5),
                id="a part of the cache",
            ),
            pytest.param(
                {"input_tokens": 10, "cache_read_input_tokens": 2000, "output_tokens": "50"},
                ReportedUsage(prompt=2010, completion=-1, cached=2000),
                id="completion",
            ),
        ],
    )
    def test_nonsense_is_not_added_away(self, usage: object, read: ReportedUsage) -> None:
        """Adding a cache to a negative count could make it look sound."""
        assert read_usage(usage) == read


class TestThoughtsInTheTotal:
    """Gemini's compatible endpoint counts thoughts nowhere but in the total."""

    @pytest.mark.parametrize(
        ("prompt", "completion", "total", "thoughts"),
        [
            (10, 5, 35, 20),
            (10, 5, 16, 1),
            (10, 5, 15, None),  # nothing left over
            (10, 5, 14, None),  # a total that is too small
            (0, 5, 35, 30),
            (10, 0, 35, 25),
            (-1, 5, 35, None),
            (10, -1, 35, None),
            (None, 5, 35, None),
            (10, None, 35, None),
            (10, 5, None, None),
        ],
    )
    def test_what_the_parts_leave(
        self, prompt: int | None, completion: int | None, total: int | None, thoughts: int | None
    ) -> None:
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
        read = ReportedUsage(prompt=prompt, completion=completion, total=total)
        assert read_usage(usage) == read
        with_thoughts = read_usage(usage, thoughts_in_total=True)
        assert with_thoughts == ReportedUsage(
            prompt=prompt, completion=completion, total=total, reasoning=thoughts
        )

    @pytest.mark.parametrize("reasoning", [0, 3])
    def test_reasoning_that_is_told_holds(self, reasoning: int) -> None:
        usage = {**CHAT, "total_tokens": 30, "reasoning_tokens": reasoning}
        read = read_usage(usage, thoughts_in_total=True)
        assert read == ReportedUsage(prompt=7, completion=3, total=30, reasoning=reasoning)


class TestMerge:
    """Counts only grow; a total is kept with the counts that it belongs to."""

    @pytest.mark.parametrize(
        ("before", "new", "merged"),
        [
            pytest.param(told(5, 1, 6), told(5, 9, 14), told(5, 9, 14), id="the new one holds"),
            pytest.param(told(5, 9, 14), told(5, 1, 6), told(5, 9, 14), id="the old one holds"),
            pytest.param(told(5, 9, 14), told(5, 9), told(5, 9, 14), id="the old one had a total"),
            pytest.param(told(5, 9, 14), told(5, 9, 16), told(5, 9, 16), id="corrected upwards"),
            pytest.param(told(5, 9, 16), told(5, 9, 14), told(5, 9, 14), id="corrected downwards"),
            pytest.param(told(5, 1, 6), told(4, 9, 13), told(5, 9), id="a side of each: no total"),
            pytest.param(
                ReportedUsage(prompt=5, total=5),
                ReportedUsage(completion=9, total=9),
                told(5, 9),
                id="each told one side",
            ),
            pytest.param(
                ReportedUsage(prompt=5),
                ReportedUsage(prompt=4, total=14),
                ReportedUsage(prompt=5),
                id="a total for a smaller prompt",
            ),
            pytest.param(
                ReportedUsage(prompt=5, total=5),
                ReportedUsage(prompt=6),
                ReportedUsage(prompt=6, total=5),
                id="one side unknown: the larger total",
            ),
            pytest.param(
                ReportedUsage(prompt=5, cached=4, reasoning=0),
                ReportedUsage(prompt=5, cached=1, audio_output=2),
                ReportedUsage(prompt=5, cached=4, reasoning=0, audio_output=2),
                id="parts one by one",
            ),
        ],
    )
    def test_larger_count_holds(
        self, before: ReportedUsage, new: ReportedUsage, merged: ReportedUsage
    ) -> None:
        assert merge_usage(before, new) == merged


def reader_of(*chunks: Mapping[str, object]) -> UsageReader:
    reader = UsageReader()
    for chunk in chunks:
        reader.read(dict[object, object](chunk.items()))
    return reader


def choice(usage: object, **more: object) -> Mapping[str, object]:
    """A chunk with one choice that tells its own usage."""
    return {"choices": [{"usage": usage, **more}]}


class TestPlaces:
    """Where in a chunk usage may stand."""

    @pytest.mark.parametrize(
        "chunk",
        [
            {"usage": CHAT},
            {"x_groq": {"usage": CHAT}},
            {"usageMetadata": CHAT},
            {"choices": [{"usage": CHAT}]},
            {"usage": None, "x_groq": {"usage": CHAT}, "choices": [{"usage": None}]},
        ],
    )
    def test_each_place(self, chunk: Mapping[str, object]) -> None:
        reader = reader_of(chunk)
        assert reader.reported == CHAT_READ
        assert reader.seen == 1
        assert reader.raw == b'{"prompt_tokens":7,"completion_tokens":3}'

    @pytest.mark.parametrize(
        "chunk",
        [
            {},
            {"usage": None},
            {"x_groq": None},
            {"x_groq": [CHAT]},
            {"x_groq": {"id": "r"}},
            {"choices": None},
            {"choices": [None, CHAT, {"usage": None}]},
        ],
    )
    def test_no_usage(self, chunk: Mapping[str, object]) -> None:
        reader = reader_of(chunk)
        assert (reader.reported, reader.seen, reader.raw) == (None, 0, b"")

    @pytest.mark.parametrize("usage", [{}, {"cost": 0.5}, []])
    def test_usage_that_counts_nothing_is_seen_and_kept(self, usage: object) -> None:
        for chunk in ({"usage": usage}, choice(usage)):
            reader = reader_of(chunk)
            assert (reader.reported, reader.seen) == (None, 1)
            assert reader.raw in {b"{}", b'{"cost":0.5}', b"[]"}

    def test_places_of_one_chunk_are_one_answer(self) -> None:
        reader = reader_of({"usage": {"prompt_tokens": 7}, "usageMetadata": GEMINI})
        assert reader.reported == read_usage(GEMINI)
        assert reader.seen == 2


LEFT_OVER = {**CHAT, "total_tokens": 30}  # 20 more than the parts


class TestModel:
    """Thoughts are looked for in the total of Gemini models only."""

    @pytest.mark.parametrize(
        ("models", "thoughts"),
        [
            (["gemini-2.5-pro"], 20),
            (["google/Gemini-2.5-Pro"], 20),
            (["gpt-5"], None),
            ([None], None),
            ([7, "gemini-2.5-pro"], 20),
            (["", "gemini-2.5-pro"], 20),
            (["gpt-5", "gemini-2.5-pro"], None),  # the first name holds
            (["gemini-2.5-pro", "gpt-5"], 20),
        ],
    )
    def test_model_of_the_answer(self, models: list[object], thoughts: int | None) -> None:
        reader = reader_of(*({"model": model} for model in models), {"usage": LEFT_OVER})
        assert reader.reported == ReportedUsage(
            prompt=7, completion=3, total=30, reasoning=thoughts
        )

    def test_a_choices_usage_is_read_alike(self) -> None:
        reader = reader_of({"model": "gemini-2.5-pro", **choice(LEFT_OVER)})
        assert reader.reported == ReportedUsage(prompt=7, completion=3, total=30, reasoning=20)


class TestChoices:
    """Usage told per choice: one prompt, and the completions together."""

    def test_inputs_are_shared_and_outputs_add_up(self) -> None:
        other = {
            **OPENAI,
            "prompt_tokens_details": {"cached_tokens": 41},
            "completion_tokens": 9,
            "completion_tokens_details": {"reasoning_tokens": 2, "audio_tokens": 1},
            "total_tokens": 109,
        }
        reader = reader_of({"choices": [{"usage": OPENAI}, {"usage": other}]})
        assert reader.reported == ReportedUsage(
            prompt=100,
            completion=59,
            total=None,
            cached=41,
            cache_write_5m=30,
            reasoning=22,
            audio_input=5,
            image_input=6,
            audio_output=8,
        )

    def test_one_choice_keeps_its_total(self) -> None:
        assert reader_of(choice(OPENAI, index=3)).reported == OPENAI_READ

    def test_what_no_choice_tells_stays_unknown(self) -> None:
        reader = reader_of(
            choice({"prompt_tokens": 7}, index=0), choice({"prompt_tokens": 8}, index=1)
        )
        assert reader.reported == ReportedUsage(prompt=8)

    def test_zero_is_a_count(self) -> None:
        zero = {"prompt_tokens": 0, "completion_tokens": 0}
        assert reader_of(choice(zero, index=0), choice(zero, index=1)).reported == told(0, 0)

    @pytest.mark.parametrize(
        ("prompt", "completion", "reported"),
        [("7", 3, told(-1, 6)), (7, -1, told(7, -1)), (7, -100, told(7, -1))],
    )
    def test_nonsense_of_one_choice_is_nonsense_of_all(
        self, prompt: object, completion: object, reported: ReportedUsage
    ) -> None:
        odd = {"prompt_tokens": prompt, "completion_tokens": completion}
        assert reader_of(choice(CHAT, index=0), choice(odd, index=1)).reported == reported

    def test_a_choice_grows_by_itself(self) -> None:
        """A chunk brings one choice, so its place in the chunk does not tell which."""
        reader = reader_of(
            choice({"prompt_tokens": 7, "completion_tokens": 9}, index=0),
            choice({"prompt_tokens": 7, "completion_tokens": 1}, index=1),
            choice({"prompt_tokens": 7, "completion_tokens": 4}, index=1),
            choice({"prompt_tokens": 0, "completion_tokens": 0}, index=1),
        )
        assert reader.reported == told(7, 9 + 4)
        assert reader.seen == 4

    @pytest.mark.parametrize("index", [None, "1", True, 1.0, [1]])
    def test_without_an_index_the_place_tells(self, index: object) -> None:
        usages = [{"prompt_tokens": 7, "completion_tokens": count} for count in (9, 4)]
        choices = [{"index": index, "usage": usage} for usage in usages]
        assert reader_of({"choices": choices}).reported == told(7, 13)

    def test_a_choice_that_counts_nothing_adds_nothing(self) -> None:
        reader = reader_of(choice(CHAT, index=0), choice({}, index=1), choice({}, index=0))
        assert reader.reported == CHAT_READ

    def test_usage_of_the_whole_answer_goes_before(self) -> None:
        whole = {"prompt_tokens": 7, "completion_tokens": 5}
        reader = reader_of(choice(CHAT, index=0), {"usage": whole}, choice(CHAT, index=1))
        assert reader.reported == told(7, 5)


class TestRaw:
    """What is kept of a provider's usage object: its numbers."""

    def test_numbers_are_kept_at_every_depth(self) -> None:
        usage = {"prompt_tokens": 3, "completion_tokens": 4, "cost": 0.5, "details": {"cached": 1}}
        kept = b'{"prompt_tokens":3,"completion_tokens":4,"cost":0.5,"details":{"cached":1}}'
        assert reader_of({"usage": usage}).raw == kept

    def test_text_is_dropped_wherever_it_stands(self) -> None:
        usage = {
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "echo": "the prompt itself",
            "list": ["the prompt itself", {"x": "the prompt itself", "y": 1}, 2],
            "the prompt itself": 1,
            "null": None,
        }
        kept = b'{"prompt_tokens":3,"completion_tokens":4,"list":[{"y":1},2],"null":null}'
        assert reader_of({"usage": usage}).raw == kept
        assert reader_of({"usage": "the prompt itself"}).raw == b"null"

    def test_names_are_short_and_plain(self) -> None:
        usage = {"a" * 64: 1, "b" * 65: 2, "a.b-c_9": 3, "a b": 4, "é": 5, "": 6}
        assert reader_of({"usage": usage}).raw == b'{"%b":1,"a.b-c_9":3}' % (b"a" * 64)

    def test_lone_surrogate_cannot_break_it(self) -> None:
        raw = reader_of({"usage": {"prompt_tokens": 3, "\ud800": "\ud800"}}).raw
        assert raw == b'{"prompt_tokens":3}'

    def test_integer_beyond_64_bits_is_kept(self) -> None:
        raw = reader_of({"usage": {"prompt_tokens": 10**20, "list": [1, 2]}}).raw
        assert raw == b'{"prompt_tokens":100000000000000000000,"list":[1,2]}'

    @pytest.mark.parametrize(
        ("opening", "closing"), [('{"a":', "}"), ("[", "]")], ids=["objects", "lists"]
    )
    def test_nested_deeper_than_8_is_cut_off(self, opening: str, closing: str) -> None:
        usage: object = 1
        for _ in range(12):
            usage = {"a": usage} if closing == "}" else [usage]
        kept = opening * 9 + "null" + closing * 9
        assert reader_of({"usage": usage}).raw == kept.encode()

    def test_larger_than_16_kib_is_dropped_whole(self) -> None:
        frame = len(b'{"prompt_tokens":7,"list":[]}')
        ones = (RAW_USAGE_BYTES_MAX - frame + 1) // 2  # "1," each but the last
        usage = {"prompt_tokens": 7, "list": [1] * (ones - 1)}
        length = frame + 2 * (ones - 1) - 1
        # Lists grow by 2 bytes: a longer number closes the gap to the limit.
        fits = {**usage, "prompt_tokens": 7 * 10 ** (RAW_USAGE_BYTES_MAX - length)}
        over = {**usage, "prompt_tokens": 7 * 10 ** (RAW_USAGE_BYTES_MAX - length + 1)}
        assert len(reader_of({"usage": fits}).raw) == RAW_USAGE_BYTES_MAX == 16_384
        reader = reader_of({"usage": over})
        assert reader.raw == b""
        assert reader.reported is not None

    @pytest.mark.parametrize(
        ("usages", "kept"),
        [
            pytest.param([CHAT, OPENAI], OPENAI, id="the last with larger counts"),
            pytest.param([CHAT, {**CHAT, "more": 1}], CHAT, id="not a repetition"),
            pytest.param([CHAT, {"prompt_tokens": 0}], CHAT, id="not a report of zeros"),
            pytest.param([CHAT, "n/a", {}], CHAT, id="not one that counts nothing"),
            pytest.param([{}, CHAT], CHAT, id="a report instead of none"),
            pytest.param([{"more": 1}, {"more": 2}], {"more": 1}, id="the first without counts"),
            pytest.param([CHAT, {**CHAT, "cost": 1}], {**CHAT, "cost": 1}, id="but for its cost"),
            pytest.param(
                [{**CHAT, "cost": 0}, OPENAI], {**OPENAI, "cost": 0}, id="cost told first"
            ),
            pytest.param([{"cost": 1}, {"cost": 2}], {"cost": 2}, id="the last cost"),
            pytest.param(
                [{**CHAT, "cost": 1}, {"cost": "a text"}], {**CHAT, "cost": 1}, id="no text"
            ),
            pytest.param(
                [{**CHAT, "cost": 1}, {"cost": None}], {**CHAT, "cost": 1}, id="null is none"
            ),
        ],
    )
    def test_last_that_said_something_new(self, usages: list[object], kept: object) -> None:
        reader = reader_of(*({"usage": usage} for usage in usages))
        assert reader.raw == reader_of({"usage": kept}).raw != b""
        assert reader.seen == len(usages)


@pytest.mark.parametrize(
    ("reported", "zero"),
    [
        (ReportedUsage(), True),
        (ReportedUsage(prompt=0, completion=0, total=0), True),
        (ReportedUsage(prompt=1, completion=0, total=0), False),
        (ReportedUsage(prompt=0, completion=1, total=0), False),
        (ReportedUsage(prompt=0, completion=0, total=1), False),
        (ReportedUsage(completion=1), False),
        (ReportedUsage(total=1), False),
        (ReportedUsage(cached=1, reasoning=1), True),  # parts of nothing
    ],
)
def test_all_zero(reported: ReportedUsage, zero: bool) -> None:
    assert is_all_zero(reported) is zero


def test_our_counts_in_openais_shape() -> None:
    usage = Usage(input=5, cached_input=2, cache_write_5m=1, output=3, reasoning=4)
    assert usage_object(usage) == {
        "prompt_tokens": 8,
        "completion_tokens": 7,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 2},
        "completion_tokens_details": {"reasoning_tokens": 4},
    }
