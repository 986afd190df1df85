"""A diff names every rule that came, went or changed, and by how many percent its prices did."""

import pytest

from pricing_rules.book import Book, parse_book
from pricing_rules.diff import Change, diff

HEAD = '[book]\nname = "t"\ncurrency = "USD"\ncredits_per_unit = "100"\n'


def book(*rules: str, head: str = HEAD) -> Book:
    return parse_book(
        head
        + "".join(
            f'[[rule]]\nid = "r{n}"\nprovider = "p"\nmodel = "m{n}"\n{rule}\n'
            for n, rule in enumerate(rules)
        )
    )


PLAIN = 'input = "2.50"\noutput = "10"'


def changes(before: str, after: str) -> list[Change]:
    found = diff(book(before), book(after))
    assert (found.book, found.added, found.gone) == ((), (), ())
    assert found.unchanged == (0 if found.changed else 1)
    return [change for rule in found.changed for change in rule.changes]


def test_equal_books_have_no_difference() -> None:
    found = diff(book(PLAIN, PLAIN), book(PLAIN, PLAIN))
    assert found.is_empty
    assert found.unchanged == 2


def test_rules_come_and_go_by_their_ids() -> None:
    found = diff(book(PLAIN), book(PLAIN, PLAIN))
    assert [rule.id for rule in found.added] == ["r1"]
    assert (found.gone, found.changed, found.unchanged, found.is_empty) == ((), (), 1, False)
    found = diff(book(PLAIN, PLAIN), book(PLAIN))
    assert [rule.id for rule in found.gone] == ["r1"]
    assert (found.added, found.changed, found.unchanged, found.is_empty) == ((), (), 1, False)


@pytest.mark.parametrize(
    ("before", "after", "percent"),
    [
        ("2.50", "5.00", "+100"),
        ("2.50", "1.25", "-50"),
        ("3", "4", "+33.33"),
        ("3", "2", "-33.33"),
        ("6", "7", "+16.67"),
        ("2.50", "2.5", ""),  # the same price, written otherwise
        ("0", "1", ""),
        ("1", "0", "-100"),
        ("1", "1.001", "+0.1"),
        ("1", "1.00005", "+0.01"),  # half of a hundredth goes up
        ("1", "1000000", "+99999900"),
    ],
)
def test_a_price_changes_in_percent(before: str, after: str, percent: str) -> None:
    rule = 'input = "{}"\noutput = "10"'
    assert changes(rule.format(before), rule.format(after)) == [
        Change(field="input", before=before, after=after, percent=percent)
    ]


def test_what_is_left_out_changes_with_its_parent_and_is_told_once() -> None:
    assert [change.field for change in changes(PLAIN, PLAIN.replace("10", "20"))] == ["output"]


def test_a_price_that_is_written_now_is_compared_with_what_held() -> None:
    assert changes(PLAIN, PLAIN + '\ncached_input = "0.25"') == [
        Change(field="cached_input", before="", after="0.25", percent="-90")
    ]
    assert changes(PLAIN + '\nreasoning = "20"', PLAIN) == [
        Change(field="reasoning", before="20", after="", percent="-50")
    ]


@pytest.mark.parametrize(
    ("line", "change"),
    [
        ("priority = 3", Change(field="priority", before="0", after="3")),
        ('scene = "a"', Change(field="scene", before="*", after="a")),
        ('status = "disabled"', Change(field="status", before="active", after="disabled")),
        ('description = "d"', Change(field="description", before="", after="d")),
        (
            "valid_until = 2026-12-01T00:00:00.5Z",
            Change(field="valid_until", before="", after="2026-12-01T00:00:00.500Z"),
        ),
        ('per_call = "1"', Change(field="per_call", before="", after="1")),
        ('minimum_charge = "1"', Change(field="minimum_charge", before="", after="1")),
        (
            'hours = [{ from = "01:00", to = "02:00", multiply = "2" }]',
            Change(field="hours", before="", after="Mon-Sun 01:00-02:00 UTC x 2"),
        ),
        (
            'service_tiers = { flex = "0.5" }',
            Change(field="service_tiers.flex", before="", after="0.5"),
        ),
        (
            'tiers = [{ over_input_tokens = 9, input = "5" }]',
            Change(field="tiers[from 10].input", before="", after="5", percent="+100"),
        ),
    ],
)
def test_anything_else_is_told_as_written(line: str, change: Change) -> None:
    assert changes(PLAIN, f"{PLAIN}\n{line}") == [change]
    (back,) = changes(f"{PLAIN}\n{line}", PLAIN)
    assert (back.field, back.before, back.after) == (change.field, change.after, change.before)


def test_a_service_tier_and_a_tier_change_in_percent() -> None:
    before = f'{PLAIN}\nservice_tiers = {{ flex = "0.5" }}\n'
    assert changes(before, before.replace("0.5", "0.75")) == [
        Change(field="service_tiers.flex", before="0.5", after="0.75", percent="+50")
    ]
    tiers = PLAIN + '\ntiers = [{ over_input_tokens = 9, input = "5", output = "11" }]'
    assert changes(tiers, tiers.replace('"5"', '"6"')) == [
        Change(field="tiers[from 10].input", before="5", after="6", percent="+20")
    ]


def test_another_exchange_rate_changes_every_price() -> None:
    found = changes(PLAIN, PLAIN + '\ncredits_per_unit = "150"')
    assert [(change.field, change.percent) for change in found] == [
        ("credits_per_unit", ""),
        ("input", "+50"),
        ("output", "+50"),
    ]


def test_the_head_is_compared() -> None:
    other = HEAD.replace('"t"', '"u"') + "effective_from = 2026-12-01T00:00:00Z\n"
    assert diff(book(PLAIN), book(PLAIN, head=other)).book == (
        Change(field="name", before="t", after="u"),
        Change(field="effective_from", before="", after="2026-12-01T00:00:00Z"),
    )
