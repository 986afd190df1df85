"""What a person may do with stuck events and holds, that it is done once, and what is refused."""

import msgspec
import pytest

from billing.context import encode_context
from billing.events import Finish
from billing.lists import PageRequest
from billing.settlement.desk import ActRefusedError, UnknownItemError
from tests.support.books import PROCESS, Books, new_id
from tests.support.money import T0, cancelled, charge, context, estimate, hold

REASON = "looked into it"


async def acts(books: Books) -> list[str]:
    page = await books.audit.page(PageRequest())
    return [row.action for row in page.items]


async def held(books: Books) -> tuple[int, int]:
    """What the account has held, and how many holds there are."""
    ((amount,),) = await books.rows("SELECT held FROM accounts WHERE account = 'alice'")
    ((count,),) = await books.rows("SELECT COUNT(*) FROM holds")
    assert isinstance(amount, int)
    assert isinstance(count, int)
    return amount, count


async def balance(books: Books) -> object:
    return (await books.rows("SELECT balance FROM accounts WHERE account = 'alice'"))[0][0]


async def poisoned(books: Books, amount: int = 30) -> tuple[str, int]:
    """A call whose event could not be posted: recorded, held, in quarantine; and its number."""
    await books.open_account()
    event_id = new_id()
    await books.hot.reserve(hold(event_id))
    await books.hot.record(charge(event_id, amount))
    await books.change("UPDATE outbox SET payload = :bad", bad=b"{}")
    report = await books.hot.settle_pending(10)
    assert report.quarantined == 1
    ((number,),) = await books.rows("SELECT id FROM quarantine")
    assert isinstance(number, int)
    return event_id, number


async def mended(books: Books) -> tuple[str, int]:
    """As `poisoned`, but a version that can read the payload has come."""
    event_id, number = await poisoned(books)
    good = msgspec.json.encode(charge(event_id, 30).event)
    await books.change("UPDATE quarantine SET payload = :good", good=good)
    return event_id, number


# -- replay ------------------------------------------------------------------------------------


async def test_replayed_event_is_charged_once(books: Books) -> None:
    event_id, number = await mended(books)
    first = await books.desk.replay(number, REASON, actor="eve")
    again = await books.desk.replay(number, "once more", actor="eve")
    assert (first.repeated, again.repeated) == (False, True)
    assert first.row.resolution == again.row.resolution == f"replayed: {REASON}"
    assert books.woken == 1
    shown = await books.desk.waiting(event_id, 2)
    assert shown.event is not None
    assert shown.event.amount == 30
    assert (await books.hot.settle_pending(10)).settled == 1
    assert await balance(books) == 9_970
    assert await held(books) == (0, 0)
    assert await books.wrong() == {}
    late = await books.desk.replay(number, REASON, actor="eve")
    assert late.repeated
    assert await books.rows("SELECT * FROM outbox") == []
    assert await acts(books) == ["quarantine.replay"]


async def test_unreadable_event_comes_back_to_quarantine(books: Books) -> None:
    event_id, number = await poisoned(books)
    shown = await books.desk.quarantined(number)
    assert (shown.event, shown.context, shown.payload_bytes, shown.held) == (None, None, 2, 100)
    await books.desk.replay(number, REASON, actor="eve")
    assert (await books.hot.settle_pending(10)).quarantined == 1
    found = await books.rows("SELECT resolved_at IS NULL FROM quarantine ORDER BY id")
    assert [bool(row[0]) for row in found] == [False, True]
    assert set(await books.wrong()) == {"R5"}
    assert (await books.desk.hold(event_id)).quarantined


async def test_event_that_was_never_recorded_is_recorded_by_its_replay(books: Books) -> None:
    """Nothing of it but the quarantine: the usage row could not be written then."""
    await books.open_account()
    event_id = new_id()
    number = await books.quarantine(charge(event_id, 30))
    await books.desk.replay(number, REASON, actor="eve")
    await books.hot.settle_pending(10)
    assert await balance(books) == 9_970
    assert await books.rows("SELECT amount, output, reason FROM usage") == [(30, 5, "replayed")]
    assert await books.wrong() == {}


async def test_cancellation_that_is_replayed_costs_nothing(books: Books) -> None:
    await books.open_account()
    event_id = new_id()
    await books.hot.reserve(hold(event_id))
    await books.hot.record(estimate(event_id, 20))
    await books.hot.settle_pending(10)
    await books.hot.cancel(cancelled(event_id))
    await books.change("UPDATE outbox SET payload = :bad", bad=b"{}")
    await books.hot.settle_pending(10)
    good = msgspec.json.encode(cancelled(event_id).event)
    await books.change("UPDATE quarantine SET payload = :good", good=good)
    await books.desk.replay(1, REASON, actor="eve")
    await books.hot.settle_pending(10)
    assert await balance(books) == 10_000
    assert await books.wrong() == {}


async def test_event_that_would_conflict_again_is_not_replayed(books: Books) -> None:
    await books.open_account()
    event_id = await books.call(30)
    number = await books.quarantine(charge(event_id, 31))
    with pytest.raises(ActRefusedError, match=r"amount.*'30'.*'31'"):
        await books.desk.replay(number, REASON, actor="eve")
    assert await acts(books) == []
    assert set(await books.wrong()) == {"R5"}


async def test_event_that_waits_already_is_not_replayed(books: Books) -> None:
    await books.open_account()
    event_id = await books.call(30, settle=False)
    number = await books.quarantine(charge(event_id, 30))
    with pytest.raises(ActRefusedError, match="waits"):
        await books.desk.replay(number, REASON, actor="eve")


async def test_settled_event_that_is_replayed_charges_no_second_time(books: Books) -> None:
    await books.open_account()
    event_id = await books.call(30)
    number = await books.quarantine(charge(event_id, 30))
    await books.desk.replay(number, REASON, actor="eve")
    await books.hot.settle_pending(10)
    assert await balance(books) == 9_970
    assert await books.wrong() == {}


async def test_payload_of_another_call_is_not_replayed(books: Books) -> None:
    await books.open_account()
    number = await books.quarantine(charge(new_id(), 30))
    await books.change("UPDATE quarantine SET event_id = :other", other=new_id())
    with pytest.raises(ActRefusedError, match="another call"):
        await books.desk.replay(number, REASON, actor="eve")


async def test_what_the_database_refuses_is_not_replayed(books: Books) -> None:
    await books.open_account()
    finish = charge(new_id(), 30)
    wrong = Finish(event=msgspec.structs.replace(finish.event, amount=-1), notes=finish.notes)
    number = await books.quarantine(wrong)
    with pytest.raises(ActRefusedError, match="takes no such event"):
        await books.desk.replay(number, REASON, actor="eve")
    assert await acts(books) == []


# -- discard -----------------------------------------------------------------------------------


async def test_discarded_event_is_never_charged_and_frees_its_hold(books: Books) -> None:
    _, number = await poisoned(books)
    assert await held(books) == (100, 1)
    first = await books.desk.discard(number, REASON, actor="eve")
    again = await books.desk.discard(number, "once more", actor="eve")
    assert (first.repeated, first.hold_released) == (False, True)
    assert (again.repeated, again.hold_released) == (True, False)
    assert await held(books) == (0, 0)
    assert await balance(books) == 10_000
    assert await books.wrong() == {}
    assert await acts(books) == ["quarantine.discard"]


async def test_resolved_one_way_is_not_resolved_the_other(books: Books) -> None:
    _, number = await mended(books)
    await books.desk.discard(number, REASON, actor="eve")
    with pytest.raises(ActRefusedError, match="discarded: looked into it"):
        await books.desk.replay(number, REASON, actor="eve")


async def test_hold_stays_while_another_event_of_the_call_waits(books: Books) -> None:
    await books.open_account()
    event_id = new_id()
    await books.hot.reserve(hold(event_id))
    await books.hot.record(charge(event_id, 30))
    number = await books.quarantine(charge(event_id, 31))
    assert not (await books.desk.discard(number, REASON, actor="eve")).hold_released
    assert await held(books) == (100, 1)
    await books.hot.settle_pending(10)
    assert await held(books) == (0, 0)
    assert await books.wrong() == {}


async def test_discarded_final_leaves_the_estimate(books: Books) -> None:
    await books.open_account()
    event_id = new_id()
    await books.hot.reserve(hold(event_id))
    await books.hot.record(estimate(event_id, 20))
    await books.hot.settle_pending(10)
    await books.hot.record(charge(event_id, 90))
    await books.change("UPDATE outbox SET payload = :bad", bad=b"{}")
    await books.hot.settle_pending(10)
    await books.desk.discard(1, REASON, actor="eve")
    assert await balance(books) == 9_980
    assert await held(books) == (0, 0)
    assert await books.wrong() == {}


async def test_discarded_message_of_a_broker_leaves_the_running_call(books: Books) -> None:
    await books.open_account()
    event_id = new_id()
    await books.hot.reserve(hold(event_id, process=PROCESS))
    number = await books.quarantine(charge(event_id, 30))
    await books.change("UPDATE quarantine SET origin = 'broker'")
    assert not (await books.desk.discard(number, REASON, actor="eve")).hold_released
    assert await held(books) == (100, 1)


async def test_unknown_numbers_are_named(books: Books) -> None:
    for act in (books.desk.replay, books.desk.discard):
        with pytest.raises(UnknownItemError):
            await act(99, REASON, actor="eve")
    with pytest.raises(UnknownItemError):
        await books.desk.quarantined(99)
    with pytest.raises(UnknownItemError):
        await books.desk.waiting(new_id(), 2)
    with pytest.raises(UnknownItemError):
        await books.desk.hold(new_id())
    with pytest.raises(UnknownItemError):
        await books.desk.release_hold(new_id(), REASON, actor="eve")


# -- holds -------------------------------------------------------------------------------------


async def test_released_hold_of_a_dead_process_costs_nothing(books: Books) -> None:
    await books.open_account()
    event_id = new_id()
    await books.hot.reserve(hold(event_id))
    detail = await books.desk.hold(event_id)
    assert (detail.process_alive, detail.recorded, detail.hold.amount) == (False, (), 100)
    assert detail.context is not None
    assert detail.context.account == "alice"
    first = await books.desk.release_hold(event_id, REASON, actor="eve")
    again = await books.desk.release_hold(event_id, REASON, actor="eve")
    assert (first.repeated, first.cancelled, again.repeated) == (False, True, True)
    assert await held(books) == (0, 0)
    assert await books.rows("SELECT revision, amount, reason FROM usage") == [(2, 0, "released")]
    assert await books.wrong() == {}
    page = await books.audit.page(PageRequest())
    assert [(row.action, row.target, row.detail["held_micro_credits"]) for row in page.items] == [
        ("hold.release", event_id, 100)
    ]


@pytest.mark.parametrize("process", [PROCESS, "registered"])
async def test_hold_of_a_living_process_stays(books: Books, process: str) -> None:
    await books.open_account()
    await books.change(
        "INSERT INTO processes (process, started_at, heartbeat_at) VALUES ('registered', 0, 0)"
    )
    event_id = new_id()
    await books.hot.reserve(hold(event_id, process=process))
    with pytest.raises(ActRefusedError, match="lives"):
        await books.desk.release_hold(event_id, REASON, actor="eve")
    assert await held(books) == (100, 1)
    assert await acts(books) == []


async def test_hold_of_a_process_that_ended_goes(books: Books) -> None:
    await books.open_account()
    await books.change(
        "INSERT INTO processes (process, started_at, heartbeat_at, ended_at)"
        " VALUES ('ended', 0, 0, 1)"
    )
    event_id = new_id()
    await books.hot.reserve(hold(event_id, process="ended"))
    await books.desk.release_hold(event_id, REASON, actor="eve")
    assert await held(books) == (0, 0)


async def test_hold_whose_charge_is_on_its_way_stays(books: Books) -> None:
    await books.open_account()
    event_id = await books.call(30, settle=False)
    with pytest.raises(ActRefusedError, match="waits to be settled"):
        await books.desk.release_hold(event_id, REASON, actor="eve")


async def test_hold_whose_charge_is_in_quarantine_stays(books: Books) -> None:
    event_id, _ = await poisoned(books)
    with pytest.raises(ActRefusedError, match="quarantine"):
        await books.desk.release_hold(event_id, REASON, actor="eve")


async def test_hold_that_was_left_over_goes_without_a_charge(books: Books) -> None:
    await books.open_account()
    event_id = await books.call(30)
    await books.change(
        "INSERT INTO holds (hold_id, account, amount, process, started_at, context)"
        " VALUES (:id, 'alice', 5, :process, :at, :empty)",
        "UPDATE accounts SET held = 5",
        id=event_id,
        process=PROCESS,
        at=T0,
        empty=b"",
    )
    released = await books.desk.release_hold(event_id, REASON, actor="eve")
    assert not released.cancelled
    assert await held(books) == (0, 0)
    assert await balance(books) == 9_970
    assert await books.wrong() == {}


async def test_hold_of_a_debit_is_released_and_no_call_is_cancelled(books: Books) -> None:
    """Else it would count as a call of the account's."""
    await books.open_account()
    debit = msgspec.structs.replace(context(new_id()), book=0)
    request = msgspec.structs.replace(hold(debit.event_id), context=encode_context(debit))
    await books.hot.reserve(request)
    done = await books.desk.release_hold(debit.event_id, REASON, actor="eve")
    assert (done.cancelled, done.repeated) == (False, False)
    assert await held(books) == (0, 0)
    assert await books.rows("SELECT * FROM usage") == []
    assert await acts(books) == ["hold.release"]


async def test_owner_that_speaks_after_a_release_goes_to_quarantine(books: Books) -> None:
    await books.open_account()
    event_id = new_id()
    await books.hot.reserve(hold(event_id))
    await books.desk.release_hold(event_id, REASON, actor="eve")
    with pytest.raises(Exception, match="conflicts in"):
        await books.hot.record(charge(event_id, 30))
    assert await balance(books) == 10_000


async def test_rebuilt_guard_holds_what_its_holds_say(books: Books) -> None:
    await books.open_account()
    await books.hot.reserve(hold(new_id()))
    await books.change("UPDATE accounts SET held = 7")
    assert await books.desk.rebuild_guard(REASON, actor="eve") == 1
    assert await held(books) == (100, 1)
    assert await acts(books) == ["guard.rebuild"]
