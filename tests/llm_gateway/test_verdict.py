"""What a finished call is charged: one line a way to end.

The rule: input 1.00, cached 0.50, output 2.00 per 1M tokens, 100 credits a unit of currency. So an
input token costs 1.00 x 100 = 100 micro-credits, a cached one 50, an output token 200.
"""

import pytest

from billing.events import UsageQuality, UsageSource
from llm_gateway.tokens import Count
from llm_gateway.verdict import Answer, Ending, Policy, Verdict, judge, nothing
from pricing_rules.book import Rule, parse_book
from pricing_rules.hours import multiplier
from pricing_rules.price import Factors
from pricing_rules.usage import ReportedUsage, Usage

BOOK = """
[book]
name = "test"
currency = "USD"
credits_per_unit = "100"

[[rule]]
id = "r"
description = "made up for this test"
scene = "*"
provider = "*"
model = "*"
input = "1.00"
cached_input = "0.50"
output = "2.00"
"""
ESTIMATE = UsageSource.BYTES
GRANT = 100_000


@pytest.fixture(scope="module")
def rule() -> Rule:
    return parse_book(BOOK).rules[0]


def answer(
    ending: Ending = Ending.WHOLE,
    reported: ReportedUsage | None = None,
    *,
    has_content: bool = True,
    delivered: int = 7,
) -> Answer:
    zero = reported is not None and not (reported.prompt or reported.completion)
    return Answer(
        ending=ending,
        reported=reported,
        raw_usage=b"{}" if reported else b"",
        all_zero=zero,
        has_content=has_content,
        delivered=lambda: delivered,
    )


def reported(prompt: int, completion: int, cached: int | None = None) -> ReportedUsage:
    return ReportedUsage(prompt=prompt, completion=completion, cached=cached)


# ending, reported, content -> quality, source, amount. Estimates: 10 input, 7 delivered tokens:
# 10 x 100 + 7 x 200 = 2400.
CASES = [
    # 100 x 100 + 50 x 200 = 20000
    (Ending.WHOLE, reported(100, 50), True, "exact", "provider", 20_000),
    # 60 x 100 + 40 x 50 + 50 x 200 = 18000
    (Ending.WHOLE, reported(100, 50, cached=40), True, "exact", "provider", 18_000),
    # cached over input counts as input: 100 x 50 + 50 x 200 = 15000
    (Ending.WHOLE, reported(100, 50, cached=900), True, "exact", "provider", 15_000),
    # a true cost above the hold is still the cost: 500 x 100 + 500 x 200 = 150000
    (Ending.WHOLE, reported(500, 500), True, "exact", "provider", 150_000),
    # zeros are a value where nothing was said
    (Ending.WHOLE, reported(0, 0), False, "exact", "provider", 0),
    (Ending.WHOLE, reported(0, 0), True, "suspicious", "bytes", 2_400),
    (Ending.WHOLE, reported(-5, 50), True, "suspicious", "bytes", 2_400),
    # 2000 x 100 + 1 x 200 = 200200, over twice the hold
    (Ending.WHOLE, reported(2_000, 1), True, "suspicious", "bytes", 2_400),
    (Ending.WHOLE, None, True, "estimated", "bytes", 2_400),
    (Ending.BROKEN, reported(100, 50), True, "partial", "provider", 20_000),
    (Ending.BROKEN, None, True, "partial", "bytes", 2_400),
    (Ending.CLIENT_GONE, None, True, "partial", "bytes", 2_400),
    (Ending.CLIENT_GONE, None, False, "partial", "bytes", 2_400),
    (Ending.CUT, None, True, "partial", "bytes", 2_400),
    # an answer with content has output: estimated, whatever the prompt's count
    (Ending.WHOLE, reported(100, 0), True, "suspicious", "bytes", 2_400),
    (Ending.WHOLE, reported(100, 0), False, "exact", "provider", 10_000),
    # broken off behind an early report: its prompt, and what was delivered: 100 x 100 + 7 x 200
    (Ending.CLIENT_GONE, reported(100, 0), True, "partial", "bytes", 11_400),
    (Ending.BROKEN, reported(100, 0), True, "partial", "bytes", 11_400),
    # a few tokens apart is no sign of that
    (Ending.CLIENT_GONE, reported(100, 1), True, "partial", "provider", 10_200),
]


@pytest.mark.parametrize(("ending", "usage", "content", "quality", "source", "amount"), CASES)
def test_charge_of_each_ending(
    rule: Rule,
    ending: Ending,
    usage: ReportedUsage | None,
    content: bool,
    quality: str,
    source: str,
    amount: int,
) -> None:
    verdict = judge(
        answer(ending, usage, has_content=content),
        rule=rule,
        grant=GRANT,
        count_input=lambda: Count(10, ESTIMATE),
        policy=Policy(no_usage="estimate", empty_answer="free"),
    )
    assert (verdict.quality, verdict.source, verdict.amount) == (quality, source, amount)
    assert not verdict.cancelled


def judged(rule: Rule, what: Answer, policy: Policy, grant: int = GRANT) -> tuple[int, bool, str]:
    verdict = judge(
        what, rule=rule, grant=grant, count_input=lambda: Count(10, ESTIMATE), policy=policy
    )
    return verdict.amount, verdict.cancelled, verdict.reason


@pytest.mark.parametrize(
    ("delivered", "output", "source"),
    # Reported were 10 tokens: up to 2 x 10 + 16 seen, the report may still be the last word.
    [(36, 10, "provider"), (37, 37, "bytes"), (500, 500, "bytes")],
)
def test_output_behind_an_early_report_is_paid(
    rule: Rule, delivered: int, output: int, source: str
) -> None:
    verdict = judge(
        answer(Ending.BROKEN, reported(100, 10), delivered=delivered),
        rule=rule,
        grant=GRANT * 10,
        count_input=lambda: Count(10, ESTIMATE),
        policy=Policy(no_usage="estimate", empty_answer="free"),
    )
    assert (verdict.usage.output, verdict.source) == (output, source)
    assert verdict.amount == 100 * 100 + 200 * output


@pytest.mark.parametrize(("grant", "amount"), [(50_000, 50_000), (1_000, 12_000)])
def test_own_count_behind_an_early_report_stays_within_the_hold(
    rule: Rule, grant: int, amount: int
) -> None:
    # Reported 100 x 100 + 10 x 200 = 12000; seen 500 x 200 of output, 110000 in all.
    verdict = judge(
        answer(Ending.BROKEN, reported(100, 10), delivered=500),
        rule=rule,
        grant=grant,
        count_input=lambda: Count(10, ESTIMATE),
        policy=Policy(no_usage="estimate", empty_answer="free"),
    )
    assert verdict.amount == amount


@pytest.mark.parametrize(
    ("delivered", "quality", "amount"),
    [
        # 10 x 100 + 2000 x 200 = 401000 are reported, four times the hold. Seen: 10 and 2000.
        (2_000, "exact", 401_000),
        (1_000, "exact", 401_000),  # half of it seen is enough: 2 x 201000 > 401000
        (990, "suspicious", 100_000),  # 2 x 199000 < 401000: estimated, and kept to the hold
    ],
)
def test_cost_far_over_the_hold_is_believed_if_it_was_seen(
    rule: Rule, delivered: int, quality: str, amount: int
) -> None:
    verdict = judge(
        answer(Ending.WHOLE, reported(10, 2_000), delivered=delivered),
        rule=rule,
        grant=GRANT,
        count_input=lambda: Count(10, ESTIMATE),
        policy=Policy(no_usage="estimate", empty_answer="free"),
    )
    assert (verdict.quality, verdict.amount) == (quality, amount)


@pytest.mark.parametrize(("lent", "amount"), [(0, 900), (600, 1_500), (2**53 - 1, 2_400)])
def test_estimate_may_exceed_the_hold_by_what_was_lent(rule: Rule, lent: int, amount: int) -> None:
    verdict = judge(
        answer(Ending.CUT),
        rule=rule,
        grant=900,
        count_input=lambda: Count(10, ESTIMATE),
        policy=Policy(no_usage="estimate", empty_answer="free"),
        lent=lent,
    )
    assert verdict.amount == amount


def test_estimate_never_exceeds_the_hold(rule: Rule) -> None:
    policy = Policy(no_usage="estimate", empty_answer="free")
    assert judged(rule, answer(), policy, grant=900) == (900, False, "no_usage")


def test_ceiling_policy_charges_the_hold(rule: Rule) -> None:
    policy = Policy(no_usage="ceiling", empty_answer="free")
    assert judged(rule, answer(), policy) == (GRANT, False, "no_usage")


def test_ceiling_policy_leaves_a_broken_answer_to_the_estimate(rule: Rule) -> None:
    policy = Policy(no_usage="ceiling", empty_answer="free")
    assert judged(rule, answer(Ending.BROKEN), policy) == (2_400, False, "broken")


@pytest.mark.parametrize(
    ("choice", "expected"), [("free", (0, True, "empty")), ("charge", (1_000, False, "empty"))]
)
def test_empty_answer_follows_its_policy(
    rule: Rule, choice: str, expected: tuple[int, bool, str]
) -> None:
    policy = Policy(no_usage="estimate", empty_answer="free" if choice == "free" else "charge")
    empty = answer(has_content=False, delivered=0)
    assert judged(rule, empty, policy) == expected


def test_nothing_is_cancelled_and_names_its_reason() -> None:
    verdict = nothing("upstream_error")
    assert (verdict.amount, verdict.cancelled, verdict.usage) == (0, True, Usage())
    assert verdict.reason == "upstream_error"
    assert verdict.quality is UsageQuality.EXACT


ESTIMATING = Policy(no_usage="estimate", empty_answer="charge")


def verdict_of(rule: Rule, seen: Answer, *, grant: int = GRANT, lent: int = 0) -> Verdict:
    return judge(
        seen,
        rule=rule,
        grant=grant,
        count_input=lambda: Count(10, ESTIMATE),
        policy=ESTIMATING,
        lent=lent,
    )


class TestWrittenOut:
    """Whole verdicts: every field counts."""

    def test_a_report_that_stops_early_is_filled_up_by_our_count(self, rule: Rule) -> None:
        # 100 input at 100, and 50 delivered instead of 5 reported at 200
        seen = answer(Ending.BROKEN, reported(100, 5), delivered=50)
        assert verdict_of(rule, seen) == Verdict(
            usage=Usage(input=100, output=50),
            quality=UsageQuality.PARTIAL,
            source=ESTIMATE,
            amount=20_000,
            raw_usage=b"{}",
            reason="broken",
        )

    @pytest.mark.parametrize(
        ("told", "delivered", "output"), [(5, 26, 5), (5, 27, 27), (0, 1, 1), (5, 3, 5)]
    )
    def test_a_small_difference_is_no_sign(
        self, rule: Rule, told: int, delivered: int, output: int
    ) -> None:
        seen = answer(Ending.BROKEN, reported(100, told), delivered=delivered)
        assert verdict_of(rule, seen).usage == Usage(input=100, output=output)

    def test_a_whole_report_is_taken_whole(self, rule: Rule) -> None:
        assert verdict_of(rule, answer(reported=reported(100, 7))) == Verdict(
            usage=Usage(input=100, output=7),
            quality=UsageQuality.EXACT,
            source=UsageSource.PROVIDER,
            amount=11_400,
            raw_usage=b"{}",
        )

    def test_a_suspicious_report_is_kept_and_named(self, rule: Rule) -> None:
        seen = answer(reported=reported(100, 0))
        assert verdict_of(rule, seen) == Verdict(
            usage=Usage(input=10, output=7),
            quality=UsageQuality.SUSPICIOUS,
            source=ESTIMATE,
            amount=2_400,
            raw_usage=b"{}",
            reason="no output is reported of an answer with content",
        )

    def test_an_estimate_may_use_what_was_lent(self, rule: Rule) -> None:
        assert verdict_of(rule, answer(), grant=1_000, lent=500).amount == 1_500
        assert verdict_of(rule, answer(), grant=1_000, lent=5_000).amount == 2_400

    def test_an_empty_answer_that_is_charged_is_an_estimate(self, rule: Rule) -> None:
        seen = answer(has_content=False, delivered=0)
        assert verdict_of(rule, seen).quality is UsageQuality.ESTIMATED

    def test_a_ceiling_says_that_the_usage_is_missing(self, rule: Rule) -> None:
        policy = Policy(no_usage="ceiling", empty_answer="free")
        verdict = judge(
            answer(),
            rule=rule,
            grant=GRANT,
            count_input=lambda: Count(10, ESTIMATE),
            policy=policy,
        )
        assert (verdict.quality, verdict.source) == (UsageQuality.MISSING, UsageSource.HOLD)

    def test_nothing_has_no_source(self) -> None:
        assert nothing("refused").source is UsageSource.NONE

    @pytest.mark.parametrize(
        ("prompt", "grant"),
        [
            (100, 5_700),  # costs 11,400: twice the hold
            (34, 1_000),  # costs 4,800: twice the 2,400 that we saw pass
        ],
    )
    def test_just_twice_as_much_is_believed(self, rule: Rule, prompt: int, grant: int) -> None:
        verdict = verdict_of(rule, answer(reported=reported(prompt, 7)), grant=grant)
        assert verdict.quality is UsageQuality.EXACT

    def test_zeros_on_an_answer_with_content_are_named(self, rule: Rule) -> None:
        verdict = verdict_of(rule, answer(reported=reported(0, 0)))
        assert verdict.reason == "all counts are 0 on an answer with content"


@pytest.mark.parametrize(
    ("what", "amount"),
    [
        (answer(reported=reported(100, 50)), 40_000),  # twice 20000
        (answer(), 4_800),  # estimated: twice 10 x 100 + 7 x 200
        (answer(Ending.BROKEN), 4_800),
        (answer(reported=reported(500, 500)), 300_000),  # over the hold and believed
        (answer(reported=reported(600, 600)), 4_800),  # 360000 is not: over twice the hold
    ],
)
def test_the_factors_of_the_quote_count_however_the_charge_is_found(
    rule: Rule, what: Answer, amount: int
) -> None:
    verdict = judge(
        what,
        rule=rule,
        factors=Factors(hours=multiplier("2")),
        grant=150_000,
        count_input=lambda: Count(10, ESTIMATE),
        policy=Policy(no_usage="estimate", empty_answer="free"),
    )
    assert verdict.amount == amount
