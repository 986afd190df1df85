"""What messages say and what they cannot make us do: nothing in one is money, nothing in one raises."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.ledger import LedgerEntry
from billing.settlement.messages import (
    QUARANTINED_BYTES_MAX,
    SETTLED_TOPIC,
    settled_message,
    sort_out,
)
from tests.support.money import T0, charge, new_id

GOOD = json.loads(msgspec.json.encode(charge("call-1", 7).event))


def message(**changes: object) -> bytes:
    return json.dumps(GOOD | changes).encode()


def test_a_charge_event_names_its_row() -> None:
    found = sort_out([message(), message(revision=1)])
    assert found.keys == (("call-1", 2), ("call-1", 1))
    assert found.strays == ()


def test_a_repeated_message_asks_once() -> None:
    assert sort_out([message()] * 3).keys == (("call-1", 2),)


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "the message cannot be read"),
        (b"\xff\xfe", "the message cannot be read"),
        (b"null", "the message cannot be read"),
        (b"[1]", "the message cannot be read"),
        (b'{"version":1}', "the message cannot be read"),
        (message(context={"event_id": 5, "account": "a"}), "the message cannot be read"),
        (message(context={"event_id": "", "account": "a"}), "the message names no event"),
        (message(context={"event_id": "x" * 129, "account": "a"}), "the message names no event"),
        (message(revision=3), "the message names no event"),
        (message(revision=2**70), "the message names no event"),
        (message(context={"event_id": "a\0b", "account": "a"}), "the message names no event"),
        (message(context={"event_id": "é", "account": "a"}), "the message names no event"),
        (b'{"version":2}', "unknown version 2"),
        (message(version=0, context=None), "unknown version 0"),
    ],
)
def test_what_cannot_be_read_is_set_aside_with_its_reason(payload: bytes, reason: str) -> None:
    found = sort_out([payload])
    assert found.keys == ()
    assert [(each.reason, each.payload) for each in found.strays] == [(reason, payload)]


def test_a_newer_version_is_set_aside_and_its_row_too() -> None:
    found = sort_out([message(version=2, shape_of_tomorrow=[])])
    assert found.keys == (("call-1", 2),), "the ledger refuses the row for the same reason"
    (stray,) = found.strays
    assert (stray.event_id, stray.revision, stray.account) == ("call-1", 2, "alice")
    assert stray.reason == "unknown version 2"


def test_what_no_database_stores_is_left_out() -> None:
    context = {"event_id": "call-1", "account": "a\0b"}
    (stray,) = sort_out([message(version=2, context=context)]).strays
    assert (stray.event_id, stray.account) == ("call-1", "")


def test_a_long_message_is_kept_in_part() -> None:
    (stray,) = sort_out([b"x" * 10**6]).strays
    assert len(stray.payload) == QUARANTINED_BYTES_MAX


@given(st.lists(st.binary(max_size=60)))
def test_no_bytes_raise_and_none_are_lost(payloads: list[bytes]) -> None:
    found = sort_out(payloads)
    assert len(found.keys) + len(found.strays) == len(payloads)


def entry(**changes: object) -> LedgerEntry:
    event_id = new_id()
    fields: dict[str, object] = {
        "event_id": event_id,
        "account": "alice",
        "account_seq": 9,
        "source": "charge",
        "source_label": "AI",
        "direction": "expense",
        "order_id": None,
        "source_ref_id": None,
        "amount": -7,
        "status": "applied",
        "description": "mini",
        "metadata_json": "{}",
        "balance_before": 100,
        "balance_after": 93,
        "payload_hash": "h",
        "usage_event_id": event_id,
        "usage_revision": 2,
        "created_at": T0,
        "posted_at": T0 + 4,
    }
    return msgspec.convert(fields | changes, LedgerEntry)


def test_others_are_told_these_things_and_no_more() -> None:
    posted = entry()
    told = settled_message(posted)
    assert told is not None
    assert (told.topic, told.key) == (SETTLED_TOPIC, "alice")
    assert json.loads(told.payload) == {
        "version": 1,
        "event_id": posted.event_id,
        "revision": 2,
        "entry_id": posted.event_id,
        "account": "alice",
        "account_seq": 9,
        "amount": -7,
        "balance_after": 93,
        "posted_at": T0 + 4,
    }


def test_what_is_no_call_is_not_told() -> None:
    assert settled_message(entry(usage_event_id=None, usage_revision=None)) is None
