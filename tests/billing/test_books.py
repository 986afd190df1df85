"""Price books: numbered, immutable, linted; in effect exactly from their moment on; stale after 5 s."""

import asyncio
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from billing import books
from billing.audit import AuditRow
from billing.books import (
    Activated,
    BookRefusedError,
    BooksStaleError,
    NoBookError,
    NothingBeforeError,
    OtherBookError,
    UnknownBookError,
    Wanted,
    database_now_ms,
)
from billing.kinds import ACTIVATION_LEAD_MS
from billing.lists import PageRequest
from billing.settlement.registry import AWAY
from pricing_rules.book import Book, parse_book
from tests.support.control import BOOK, OTHER_BOOK, Control, control

THIRD_BOOK = BOOK.replace('"test prices"', '"third prices"')
FAR = 4_000_000_000_000  # the year 2096


async def _upload(plane: Control, book: str) -> int:
    return (await plane.books.upload(book, actor="test")).version


async def _acts(plane: Control, action: str) -> tuple[AuditRow, ...]:
    return (await plane.audit.page(PageRequest(), action=action)).items


async def _now(plane: Control) -> int:
    async with plane.database.read() as connection:
        return await database_now_ms(connection)


async def test_versions_count_from_one(plane: Control) -> None:
    assert [await _upload(plane, BOOK), await _upload(plane, OTHER_BOOK)] == [1, 2]


async def test_same_text_is_the_same_version(plane: Control) -> None:
    await _upload(plane, BOOK)
    again = await plane.books.upload(BOOK, actor="test")
    assert (again.version, again.repeated) == (1, True)
    assert (await plane.books.page(PageRequest())).total == 1


async def test_text_comes_back_as_uploaded(plane: Control) -> None:
    odd = BOOK.replace("\n", "\r\n") + "# 价格\r\n"
    version = await _upload(plane, odd)
    assert await plane.books.text(version) == odd


async def test_book_with_errors_is_refused_whole(plane: Control) -> None:
    bad = BOOK.replace('input = "2.50"', "input = 2.5").replace('"20.00"', '"dear"')
    with pytest.raises(BookRefusedError) as refused:
        await plane.books.upload(bad, actor="test")
    assert {problem.rule for problem in refused.value.problems} >= {"echo-mini", "agent-mini"}
    assert (await plane.books.page(PageRequest())).total == 0
    assert (await plane.audit.page(PageRequest())).total == 0


@pytest.mark.parametrize(
    "statement", ["UPDATE price_books SET toml = ''", "DELETE FROM price_books"]
)
async def test_versions_cannot_be_changed(plane: Control, statement: str) -> None:
    await _upload(plane, BOOK)
    with pytest.raises(IntegrityError, match="append-only"):
        async with plane.database.write() as connection:
            await connection.execute(text(statement))


async def test_uploaded_book_is_not_in_effect(plane: Control) -> None:
    await _upload(plane, BOOK)
    await plane.books.start()
    with pytest.raises(NoBookError):
        plane.books.current(FAR)


async def test_first_book_is_in_effect_at_once(plane: Control) -> None:
    before = await _now(plane)
    assert await plane.books.load_first(BOOK, actor="test") == 1
    after = await _now(plane)
    effective_from = (await plane.books.info(1)).effective_from
    assert effective_from is not None
    assert before <= effective_from <= after
    assert plane.books.current(effective_from)[0] == 1


async def test_first_book_is_loaded_into_an_empty_database_only(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    assert await plane.books.load_first(OTHER_BOOK, actor="test") is None
    assert (await plane.books.page(PageRequest())).total == 1


async def test_next_book_takes_effect_exactly_at_its_moment(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    before = await _now(plane)
    activation = await plane.books.activate(2, Wanted(replaces=1), actor="test")
    at = activation.effective_from
    assert before + ACTIVATION_LEAD_MS <= at <= await _now(plane) + ACTIVATION_LEAD_MS
    assert plane.books.current(at - 1)[0] == 1
    assert plane.books.current(at)[0] == 2
    assert plane.books.current(at)[1].name == "other prices"


async def test_activation_may_be_scheduled(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    assert (
        await plane.books.activate(2, Wanted(replaces=1, at=FAR), actor="test")
    ).effective_from == FAR
    assert plane.books.current(FAR - 1)[0] == 1
    assert plane.books.current(FAR)[0] == 2


async def test_activation_is_never_in_the_past(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    before = await _now(plane)
    activation = await plane.books.activate(2, Wanted(replaces=1, at=1), actor="test")
    assert activation.effective_from >= before + ACTIVATION_LEAD_MS


async def test_own_effective_from_of_a_book_is_kept(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    dated = OTHER_BOOK.replace("[book]", "[book]\neffective_from = 2096-10-02T07:06:40Z")
    await _upload(plane, dated)
    assert (await plane.books.activate(2, Wanted(replaces=1), actor="test")).effective_from == FAR


async def test_scheduled_activation_survives_a_fix_before_it(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    await plane.books.activate(2, Wanted(replaces=1, at=FAR), actor="test")
    await _upload(plane, THIRD_BOOK)
    fix = await plane.books.activate(3, Wanted(replaces=1, followed_by=2), actor="test")
    assert plane.books.current(fix.effective_from)[0] == 3
    assert plane.books.current(FAR)[0] == 2


async def test_later_decision_for_one_moment_replaces(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    await plane.books.activate(2, Wanted(replaces=1, at=FAR), actor="test")
    await plane.books.activate(1, Wanted(replaces=2, at=FAR), actor="test")
    assert plane.books.current(FAR)[0] == 1


async def test_activating_again_what_holds_already_changes_nothing(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    first = await plane.books.activate(2, Wanted(replaces=1), actor="test")
    again = await plane.books.activate(2, Wanted(replaces=1), actor="test")
    assert (again.repeated, again.effective_from) == (True, first.effective_from)
    assert [row.target for row in await _acts(plane, "book.activate")] == ["2", "1"]


@pytest.mark.parametrize(
    ("wanted", "replaces", "followed_by"),
    [
        (Wanted(), 1, 2),
        (Wanted(replaces=1), 1, 2),
        (Wanted(replaces=2, followed_by=2), 1, 2),
        (Wanted(replaces=9, followed_by=2), 1, 2),
        (Wanted(replaces=1, followed_by=9), 1, 2),
        (Wanted(replaces=1, at=FAR), 2, None),
        (Wanted(replaces=1, at=FAR + 1), 2, None),
        (Wanted(replaces=2, followed_by=2, at=FAR), 2, None),
        (Wanted(followed_by=2, at=FAR - 1), 1, 2),
    ],
)
async def test_activation_that_takes_another_state_for_granted_is_refused(
    plane: Control, wanted: Wanted, replaces: int, followed_by: int | None
) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    await plane.books.activate(2, Wanted(replaces=1, at=FAR), actor="test")
    await _upload(plane, THIRD_BOOK)
    before = await plane.books.schedule()
    with pytest.raises(OtherBookError) as refused:
        await plane.books.activate(3, wanted, actor="test")
    follower = refused.value.followed_by
    assert refused.value.replaces == replaces
    assert (None if follower is None else follower.version) == followed_by
    assert await plane.books.schedule() == before
    assert len(await _acts(plane, "book.activate")) == 2


async def test_of_two_activations_at_once_one_wins(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    await _upload(plane, THIRD_BOOK)
    other = plane.other_process()
    ended = await asyncio.gather(
        plane.books.activate(2, Wanted(replaces=1), actor="ada"),
        other.books.activate(3, Wanted(replaces=1), actor="eve"),
        return_exceptions=True,
    )
    won = [each for each in ended if isinstance(each, Activated)]
    lost = [each for each in ended if isinstance(each, OtherBookError)]
    assert (len(won), len(lost)) == (1, 1)
    assert lost[0].replaces == won[0].version or lost[0].followed_by is not None
    await plane.books.refresh()
    await other.books.refresh()
    assert plane.books.current(FAR)[0] == other.books.current(FAR)[0] == won[0].version


async def _hold_since_now(plane: Control, version: int) -> None:
    """As if a version had been activated a while ago."""
    async with plane.database.write() as connection:
        now = await database_now_ms(connection)
        await connection.execute(
            text(
                "INSERT INTO price_book_activations (version, effective_from, created_at)"
                f" VALUES ({version}, {now}, {now})"
            )
        )


async def test_rollback_activates_the_version_before(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    await _hold_since_now(plane, 2)
    back = await plane.books.rollback(Wanted(replaces=2), actor="ada")
    assert (back.version, back.replaced) == (1, 2)
    assert plane.books.current(back.effective_from - 1)[0] == 2
    assert plane.books.current(back.effective_from)[0] == 1
    (act,) = await _acts(plane, "book.rollback")
    assert (act.actor, act.target) == ("ada", "1")
    assert act.detail == {"effective_from": back.effective_from, "replaces": 2}


async def test_rollback_takes_back_what_is_not_in_effect_yet(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    await plane.books.activate(2, Wanted(replaces=1), actor="test")
    assert (await plane.books.rollback(Wanted(replaces=2), actor="test")).version == 1


async def test_rollback_goes_one_step_further_each_time(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    for version, book in ((2, OTHER_BOOK), (3, THIRD_BOOK)):
        await _upload(plane, book)
        await plane.books.activate(version, Wanted(replaces=version - 1), actor="test")
    assert (await plane.books.rollback(Wanted(replaces=3), actor="test")).version == 2
    assert (await plane.books.rollback(Wanted(replaces=2), actor="test")).version == 1
    with pytest.raises(NothingBeforeError):
        await plane.books.rollback(Wanted(replaces=1), actor="test")


async def test_repeated_rollback_is_refused_and_not_a_second_step(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    for version, book in ((2, OTHER_BOOK), (3, THIRD_BOOK)):
        await _upload(plane, book)
        await plane.books.activate(version, Wanted(replaces=version - 1), actor="test")
    await plane.books.rollback(Wanted(replaces=3), actor="test")
    with pytest.raises(OtherBookError) as refused:
        await plane.books.rollback(Wanted(replaces=3), actor="test")
    assert refused.value.replaces == 2


async def test_rollback_without_an_earlier_book_is_refused(plane: Control) -> None:
    with pytest.raises(NothingBeforeError):
        await plane.books.rollback(Wanted(), actor="test")
    await plane.books.load_first(BOOK, actor="test")
    with pytest.raises(NothingBeforeError):
        await plane.books.rollback(Wanted(replaces=1), actor="test")


async def test_schedule_tells_what_holds_and_what_is_to_come(plane: Control) -> None:
    assert await plane.books.schedule() == (None, ())
    await plane.books.load_first(BOOK, actor="test")
    await _upload(plane, OTHER_BOOK)
    await plane.books.activate(2, Wanted(replaces=1, at=FAR), actor="ada")
    current, later = await plane.books.schedule()
    assert current is not None
    assert current.version == 1
    assert [(each.version, each.effective_from, each.activated_by) for each in later] == [
        (2, FAR, "ada")
    ]
    first, second = (await plane.books.info(1)), (await plane.books.info(2))
    assert (first.effective_from, first.scheduled_from) == (current.effective_from, None)
    assert (second.effective_from, second.scheduled_from) == (None, FAR)
    # Decided otherwise for that moment: it is to come no more.
    await plane.books.activate(1, Wanted(replaces=2, at=FAR), actor="ada")
    assert (await plane.books.info(2)).scheduled_from is None


async def test_calls_go_on_while_a_book_is_read(
    plane: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    await plane.books.load_first(BOOK, actor="test")
    other = plane.other_process()
    await other.books.start()
    await _upload(plane, OTHER_BOOK)
    at = (await plane.books.activate(2, Wanted(replaces=1), actor="test")).effective_from
    gate = threading.Event()

    def slowly(book: str) -> Book:
        gate.wait(30)
        return parse_book(book)

    monkeypatch.setattr(books, "parse_book", slowly)
    monkeypatch.setattr(books, "READING_SECONDS", 0.01)
    for _ in range(8):  # seconds, more than it takes to be stale
        plane.clock.tick(1)
        await other.books.refresh()
        assert other.books.current(at - 1)[0] == 1
        with pytest.raises(BooksStaleError):
            other.books.current(at)
    gate.set()
    monkeypatch.setattr(books, "READING_SECONDS", 30.0)
    await other.books.refresh()
    assert other.books.current(at)[0] == 2


async def test_upload_is_held_against_the_active_book_and_the_calls_of_late(
    plane: Control,
) -> None:
    await plane.books.load_first(BOOK, actor="test")
    async with plane.database.read() as connection:
        now = await database_now_ms(connection)
    quarter = 900_000
    for model, ago in (("mini", 0), ("gone", 1), ("long-ago", 8)):
        at = (now - ago * 86_400_000) // quarter * quarter
        async with plane.database.write() as connection:
            await connection.execute(
                text(
                    "INSERT INTO usage_quarters"
                    " (account, bucket_at, key_id, app, scene, provider, model, calls)"
                    " VALUES ('ada', :at, 'k', '', 'chat', 'echo', :model, 1)"
                ),
                {"at": at, "model": model},
            )
    dear = BOOK.replace('"2.50"', '"25.01"')  # over 10 times as dear
    warnings = (await plane.books.upload(dear, actor="test")).warnings
    told = [w.message for w in warnings if "says nothing" not in w.message]
    assert told == [
        (
            "no rule prices the model 'gone' of provider 'echo' in scene 'chat', which was called of "
            "late: such calls would be refused"
        ),
        'is 10 times dearer than in the book in effect (rule "echo-mini")',
        "is cheaper than input; are the two swapped?",
    ]
    alone = await plane.books.review(dear, against_active=False)
    assert [p.message for p in alone.problems if "says nothing" not in p.message] == told[2:]


async def test_versions_are_compared(plane: Control) -> None:
    await _upload(plane, BOOK)
    with pytest.raises(NoBookError):
        await plane.books.compare(1)
    await plane.books.activate(1, Wanted(), actor="test")
    await _upload(plane, OTHER_BOOK)
    found = await plane.books.compare(2)
    assert (found.version, found.against) == (2, 1)
    (changed,) = found.diff.changed
    # From 2.50 to 3.00 is 20 % more.
    assert [(c.field, c.percent) for c in changed.changes] == [("input", "+20")]
    back = await plane.books.compare(1, 2)
    assert [(c.field, c.percent) for c in back.diff.changed[0].changes] == [("input", "-16.67")]
    for pair in ((1, 9), (9, 1)):
        with pytest.raises(UnknownBookError):
            await plane.books.compare(*pair)


@pytest.mark.parametrize("version", [0, -1, 2, 99])
async def test_unknown_version_is_refused(plane: Control, version: int) -> None:
    await plane.books.load_first(BOOK, actor="test")
    for attempt in (plane.books.get, plane.books.text, plane.books.info):
        with pytest.raises(UnknownBookError):
            await attempt(version)
    with pytest.raises(UnknownBookError):
        await plane.books.activate(version, Wanted(replaces=1), actor="test")


async def test_books_are_stale_after_five_seconds(plane: Control) -> None:
    with pytest.raises(BooksStaleError):
        plane.books.current(FAR)
    await plane.books.load_first(BOOK, actor="test")
    plane.clock.tick(5.0)
    assert plane.books.current(FAR)[0] == 1
    plane.clock.tick(0.001)
    with pytest.raises(BooksStaleError):
        plane.books.current(FAR)
    await plane.books.refresh()
    assert plane.books.current(FAR)[0] == 1


async def test_failed_refresh_keeps_books_until_they_are_stale(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    async with plane.away():
        plane.clock.tick(4)
        with pytest.raises(AWAY):
            await plane.books.refresh()
        assert plane.books.current(FAR)[0] == 1
        plane.clock.tick(1.001)
        with pytest.raises(BooksStaleError):
            plane.books.current(FAR)
    await plane.books.refresh()
    assert plane.books.current(FAR)[0] == 1


async def test_other_process_sees_an_activation_at_its_next_refresh(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    other = plane.other_process()
    await other.books.start()
    await _upload(plane, OTHER_BOOK)
    at = (await plane.books.activate(2, Wanted(replaces=1), actor="test")).effective_from
    assert other.books.current(at)[0] == 1
    await other.books.refresh()
    assert other.books.current(at)[0] == 2


async def test_clock_behind_the_database_prices_by_the_book_before(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    first = (await plane.books.info(1)).effective_from or 0
    await _upload(plane, OTHER_BOOK)
    async with plane.database.write() as connection:
        await connection.execute(
            text(
                "INSERT INTO price_book_activations (version, effective_from, created_at)"
                f" VALUES (2, {first + 1}, {first})"
            )
        )
    await plane.books.refresh()
    assert plane.books.current(first)[0] == 1
    assert plane.books.current(first + 1)[0] == 2


async def test_differing_file_is_told(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="test")
    assert await plane.books.version_of(BOOK) == 1
    assert await plane.books.version_of(OTHER_BOOK) is None


async def test_uploads_at_once_get_different_versions(plane: Control) -> None:
    books = [BOOK.replace("test prices", f"prices {number}") for number in range(5)]
    versions = await asyncio.gather(*(_upload(plane, book) for book in books))
    assert sorted(versions) == [1, 2, 3, 4, 5]


async def test_acts_are_audited(plane: Control) -> None:
    await plane.books.load_first(BOOK, actor="ada")
    rows = (await plane.audit.page(PageRequest())).items
    assert [(row.action, row.target, row.actor) for row in rows] == [
        ("book.activate", "1", "ada"),
        ("book.upload", "1", "ada"),
    ]


async def test_pages_and_cursor_list_every_version_once(plane: Control) -> None:
    for number in range(5):
        await _upload(plane, BOOK.replace("test prices", f"prices {number}"))
    by_page = [
        info.version
        for number in (1, 2, 3)
        for info in (await plane.books.page(PageRequest(page=number, page_size=2))).items
    ]
    assert by_page == [5, 4, 3, 2, 1]
    first = await plane.books.page(PageRequest(page_size=3))
    assert (first.next_after, first.has_more) == (3, True)
    rest = await plane.books.page(PageRequest(page_size=3, after=first.next_after))
    assert [info.version for info in rest.items] == [2, 1]
    assert not rest.has_more


@settings(max_examples=20)
@given(moments=st.lists(st.integers(0, 50), min_size=1, max_size=12), asked=st.integers(0, 60))
def test_latest_moment_that_has_come_wins(moments: list[int], asked: int) -> None:
    """Against the rule told the other way round: walk through time and apply what is due."""

    async def story() -> int | None:
        import tempfile

        with tempfile.TemporaryDirectory() as directory:
            async with control(Path(directory)) as plane:
                await _upload(plane, BOOK)
                await _upload(plane, OTHER_BOOK)
                async with plane.database.write() as connection:
                    for number, moment in enumerate(moments):
                        await connection.execute(
                            text(
                                "INSERT INTO price_book_activations"
                                " (version, effective_from, created_at)"
                                f" VALUES ({number % 2 + 1}, {FAR + moment}, {number})"
                            )
                        )
                await plane.books.refresh()
                try:
                    return plane.books.current(FAR + asked)[0]
                except NoBookError:
                    return None

    expected: int | None = None
    for tick in range(asked + 1):
        for number, moment in enumerate(moments):
            if moment == tick:
                expected = number % 2 + 1
    assert asyncio.run(story()) == expected
