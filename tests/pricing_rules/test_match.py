"""The rule that wins is the one a slow, plain reference picks; every loser is told why."""

import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pricing_rules.book import Book, BookError, Rule, parse_book
from pricing_rules.match import TEXT_CHARACTERS_MAX, explain, match

HEAD = '[book]\nname = "t"\ncurrency = "USD"\ncredits_per_unit = "100"\n'


def make_book(*rules: tuple[str, str, str, str, int] | tuple[str, str, str, str, int, str]) -> Book:
    """Rules as (id, scene, provider, model, priority[, status])."""
    text = HEAD
    for rule_id, scene, provider, model, priority, *status in rules:
        text += (
            f'[[rule]]\nid = "{rule_id}"\nscene = "{scene}"\nprovider = "{provider}"\n'
            f'model = "{model}"\npriority = {priority}\nstatus = "{(status or ["active"])[0]}"\n'
            'input = "1"\noutput = "1"\n'
        )
    return parse_book(text)


def winner(book: Book, scene: str, provider: str, model: str) -> str | None:
    rule = match(book, scene, provider, model)
    return rule.id if rule else None


def test_the_higher_priority_wins() -> None:
    book = make_book(("exact", "a", "p", "m", 0), ("wide", "*", "*", "*", 1))
    assert winner(book, "a", "p", "m") == "wide"


def test_the_narrower_scene_wins_then_provider_then_model() -> None:
    book = make_book(
        ("scene", "a", "*", "*", 0),
        ("provider", "*", "p", "*", 0),
        ("model", "*", "*", "m", 0),
        ("glob", "*", "p", "gpt-*", 0),
        ("longer-glob", "*", "p", "gpt-4*", 0),
    )
    assert winner(book, "a", "p", "m") == "scene"
    assert winner(book, "b", "p", "m") == "provider"
    assert winner(book, "b", "q", "m") == "model"
    assert winner(book, "b", "p", "gpt-4o") == "longer-glob"
    assert winner(book, "b", "p", "gpt-3") == "glob"


def test_no_rule_is_none() -> None:
    book = make_book(("r", "agent", "openai", "gpt-4o", 0))
    assert winner(book, "agent", "openai", "gpt-4o") == "r"
    for scene, provider, model in [
        ("chat", "openai", "gpt-4o"),
        ("agent", "azure", "gpt-4o"),
        ("agent", "openai", "gpt-4o-mini"),
        ("agent", "openai", "GPT-4o"),
        ("", "", ""),
        ("*", "*", "*"),
    ]:
        assert winner(book, scene, provider, model) is None


def test_a_disabled_rule_never_matches() -> None:
    book = make_book(("off", "*", "p", "m", 9, "disabled"), ("on", "*", "*", "m*", 0))
    assert winner(book, "a", "p", "m") == "on"


def test_an_overlong_model_matches_nothing_and_is_not_cached() -> None:
    book = make_book(("any", "*", "*", "*", 0))
    longest = "m" * (TEXT_CHARACTERS_MAX - 2)
    assert winner(book, "a", "p", longest) == "any"
    assert winner(book, "a", "p", longest + "m") is None
    (candidate,) = explain(book, "a", "p", longest + "m")
    assert candidate.why == "the call's texts are longer than 256 characters"


def test_two_books_do_not_share_answers() -> None:
    assert winner(make_book(("one", "*", "*", "*", 0)), "a", "p", "m") == "one"
    assert winner(make_book(("two", "*", "*", "*", 0)), "a", "p", "m") == "two"


def test_explain_tells_why_each_candidate_lost() -> None:
    book = make_book(
        ("won", "agent", "openai", "gpt-4o", 5),
        ("priority", "*", "*", "*", 4),
        ("scene", "a*", "openai", "gpt-4o", 5),
        ("provider", "agent", "*", "gpt-4o", 5),
        ("model", "agent", "openai", "gpt*", 5),
        ("off", "agent", "openai", "gpt-4?", 9, "disabled"),
        ("other-scene", "chat", "openai", "gpt-4o", 9),
        ("other-provider", "*", "azure", "gpt-4o", 0),
        ("other-model", "agent", "openai", "o3", 0),
        ("unrelated", "agent", "azure", "o3", 0),
    )
    candidates = explain(book, "agent", "openai", "gpt-4o")
    assert [candidate.won for candidate in candidates] == [True] + [False] * 8
    assert {candidate.rule.id: candidate.why for candidate in candidates} == {
        "won": "matches by scene 'agent', provider 'openai', model 'gpt-4o'; priority 5",
        "priority": "its priority 4 is below 5",
        "scene": "its scene 'a*' is wider than 'agent'",
        "provider": "its provider '*' is wider than 'openai'",
        "model": "its model 'gpt*' is wider than 'gpt-4o'",
        "off": "it is disabled",
        "other-scene": "its scene 'chat' does not match 'agent'",
        "other-provider": "its provider 'azure' does not match 'openai'",
        "other-model": "its model 'o3' does not match 'gpt-4o'",
    }


def test_explain_without_a_winner_names_near_misses() -> None:
    book = make_book(("a", "chat", "p", "m", 0), ("b", "x", "y", "z", 0))
    (candidate,) = explain(book, "agent", "p", "m")
    assert (candidate.rule.id, candidate.won) == ("a", False)


PATTERN = st.sampled_from(["*", "a", "b", "ab", "a*", "*b", "?", "a?", "?b", "*a*", "??"])
TEXT = st.sampled_from(["", "a", "b", "ab", "ba", "aab", "abb", "c"])
RULES = st.lists(
    st.tuples(
        PATTERN, PATTERN, PATTERN, st.integers(0, 2), st.sampled_from(["active", "disabled"])
    ),
    min_size=1,
    max_size=8,
)


def specificity(pattern: str) -> tuple[int, int]:
    """The reference's own reading of the rule: exact, then literal characters, then "*"."""
    if not set(pattern) & set("*?"):
        return 2, 0
    return (0, 0) if pattern == "*" else (1, len(pattern.replace("*", "").replace("?", "")))


def reference(rules: tuple[Rule, ...], scene: str, provider: str, model: str) -> Rule | None:
    matching = [
        rule
        for rule in rules
        if rule.status == "active"
        and fnmatch.fnmatchcase(scene, rule.scene)
        and fnmatch.fnmatchcase(provider, rule.provider)
        and fnmatch.fnmatchcase(model, rule.model)
    ]
    return max(
        matching,
        key=lambda rule: (
            rule.priority,
            specificity(rule.scene),
            specificity(rule.provider),
            specificity(rule.model),
        ),
        default=None,
    )


@given(RULES, TEXT, TEXT, TEXT)
def test_match_agrees_with_brute_force(
    drawn: list[tuple[str, str, str, int, str]], scene: str, provider: str, model: str
) -> None:
    # Rules are taken as long as none ties with those before it.
    kept: list[tuple[str, str, str, str, int, str]] = []
    book = None
    for number, rule in enumerate(drawn):
        candidate = [*kept, (f"r{number}", *rule)]
        try:
            book = make_book(*candidate)
        except BookError:
            continue
        kept = candidate
    assert book is not None
    expected = reference(book.rules, scene, provider, model)
    assert match(book, scene, provider, model) is expected
    candidates = explain(book, scene, provider, model)
    assert [candidate.rule for candidate in candidates if candidate.won] == (
        [expected] if expected else []
    )
    assert all(candidate.why for candidate in candidates)


@pytest.mark.parametrize("model", ["model-299", "nothing-like-it"])
def test_a_first_match_does_not_read_every_exact_rule(model: str) -> None:
    book = make_book(
        *[(f"r{number}", "*", "p", f"model-{number}", 0) for number in range(300)],
        ("any", "*", "q", "*", 0),
    )
    assert winner(book, "a", "q", model) == "any"
    assert winner(book, "a", "p", model) == ("r299" if model == "model-299" else None)


def windowed(*rules: tuple[str, str]) -> Book:
    text = HEAD
    for number, (rule_id, window) in enumerate(rules):
        priority = f"priority = {len(rules) - number}" if "priority" not in window else ""
        text += (
            f'[[rule]]\nid = "{rule_id}"\nprovider = "p"\nmodel = "m"\n{priority}\n{window}\n'
            'input = "1"\noutput = "1"\n'
        )
    return parse_book(text)


DAY = 86_400_000
MAY_1 = 1_777_593_600_000  # 2026-05-01T00:00:00Z


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (MAY_1 - 1, "always"),
        (MAY_1, "may"),
        (MAY_1 + DAY - 1, "may"),
        (MAY_1 + DAY, "later"),
        (MAY_1 + 999 * DAY, "later"),
        (0, "always"),
        (None, "always"),
    ],
)
def test_windows_are_judged_at_admission(at: int | None, expected: str) -> None:
    book = windowed(
        ("may", "valid_from = 2026-05-01T00:00:00Z\nvalid_until = 2026-05-02T00:00:00Z"),
        ("later", "valid_from = 2026-05-02T00:00:00Z"),
        ("always", ""),
        ("never", ""),
    )
    rule = match(book, "s", "p", "m", at)
    assert rule is not None
    assert rule.id == expected
    assert [each.rule.id for each in explain(book, "s", "p", "m", at) if each.won] == [expected]


def test_without_a_rule_that_always_holds_there_may_be_none() -> None:
    book = windowed(("past", "valid_until = 2026-05-01T00:00:00Z"))
    assert match(book, "s", "p", "m", MAY_1 - 1) is book.rules[0]
    assert match(book, "s", "p", "m", MAY_1) is None
    assert match(book, "s", "p", "m") is None


def test_explain_tells_when_a_rule_holds() -> None:
    book = windowed(
        ("past", "valid_until = 2026-04-01T00:00:00Z"),
        ("coming", "valid_from = 2026-06-01T12:00:00.25Z"),
        ("now", ""),
    )
    assert {each.rule.id: each.why for each in explain(book, "s", "p", "m", MAY_1)} == {
        "now": "matches by scene '*', provider 'p', model 'm'; priority 1",
        "past": "it held only until 2026-04-01T00:00:00Z",
        "coming": "it holds only from 2026-06-01T12:00:00.250Z on",
    }
    more = windowed(
        ("from_then", "valid_from = 2026-05-01T00:00:00Z"),
        ("ended", "valid_until = 2026-05-01T00:00:00Z"),
    )
    at_that_moment = explain(more, "s", "p", "m", MAY_1)
    assert [(each.rule.id, each.won) for each in at_that_moment] == [
        ("from_then", True),
        ("ended", False),
    ]
    assert at_that_moment[1].why == "it held only until 2026-05-01T00:00:00Z"
    below = windowed(("first", ""), ("second", "valid_from = 2026-04-01T00:00:00Z"))
    assert explain(below, "s", "p", "m", MAY_1)[1].why == "its priority 1 is below 2"
    (missed,) = explain(book, "s", "p", "other", MAY_1)[:1]
    assert (missed.won, missed.missed) == (False, "model")
    whys = [each.why for each in explain(book, "s", "p", "m")][1:]
    assert whys == ["it holds only for some time, and it was not said when the call was"] * 2


@pytest.mark.parametrize(
    ("first", "second", "ties"),
    [
        ("valid_until = 2026-05-01T00:00:00Z", "valid_from = 2026-05-01T00:00:00Z", False),
        ("valid_until = 2026-05-01T00:00:00.001Z", "valid_from = 2026-05-01T00:00:00Z", True),
        ("valid_from = 2026-05-01T00:00:00Z", "valid_until = 2026-05-01T00:00:00Z", False),
        ("valid_from = 2026-05-01T00:00:00Z", "valid_from = 2027-05-01T00:00:00Z", True),
        ("valid_until = 2026-05-01T00:00:00Z", "valid_until = 2027-05-01T00:00:00Z", True),
        ("", "valid_until = 2027-05-01T00:00:00Z", True),
    ],
)
def test_rules_tie_only_if_they_hold_at_one_time(first: str, second: str, ties: bool) -> None:
    rules = (("a", f"priority = 1\n{first}"), ("b", f"priority = 1\n{second}"))
    if not ties:
        assert len(windowed(*rules).rules) == 2
        return
    with pytest.raises(BookError, match='ties with rule "a"'):
        windowed(*rules)


def test_of_many_ties_each_rule_is_told_of_its_first() -> None:
    with pytest.raises(BookError) as refused:
        make_book(*[(f"r{n}", "*", "p", f"*{n}*", 0) for n in range(10)])
    told = [(problem.rule, problem.message[:21]) for problem in refused.value.problems]
    assert told == [(f"r{n}", 'ties with rule "r0" a') for n in range(1, 10)]


@pytest.mark.parametrize(
    ("pattern", "model", "expected"),
    [
        ("gpt-*", "gpt-", True),
        ("gpt-*", "gpt", False),
        ("*-latest", "x-latest", True),
        ("*-latest", "-latest", True),
        ("*-latest", "latest", False),
        ("*-latest", "x-latest-1", False),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("ab*ba", "aba", False),
        ("*mid*", "xmidx", True),
        ("*b*b*", "aba", False),
        ("?", "", False),
        ("?*", "a", True),
        ("a?", "a\n", True),
        ("a*", "a\nb", True),
        ("a.*", "abc", False),
        ("[a]*", "a", False),
    ],
)
def test_globs_are_found_through_the_index(pattern: str, model: str, expected: bool) -> None:
    text = HEAD + f'[[rule]]\nid = "r"\nprovider = "p"\nmodel = "{pattern}"\nfree = true\n'
    book = parse_book(text)
    assert (match(book, "s", "p", model) is not None) is expected
