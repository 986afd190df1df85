"""Pure: what travels over a broker, `credit.charge.requested` to the worker, `credit.charge.settled` to others.

A requested charge is the charge event itself, as the outbox holds it. The worker reads only which
row it names: money comes from the row, so that a message nobody of us sent can settle nothing.
"""

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from billing.db.outbox import EventKey, StrayMessage
from billing.events import EVENT_VERSION, TOPIC
from billing.ledger import LedgerEntry

REQUESTED_TOPIC: Final = TOPIC
SETTLED_TOPIC: Final = "credit.charge.settled"
SETTLED_VERSION: Final = 1
QUARANTINED_BYTES_MAX: Final = 64 * 1024  # of a message that cannot be read; a charge is 1 kB
_ID: Final = re.compile(r"[!-~]{1,128}")  # no database refuses such a text


class Outgoing(msgspec.Struct, frozen=True, kw_only=True):
    """A message to send; `key` keeps an account's messages on one partition, in order."""

    topic: str
    key: str
    payload: bytes


class ChargeSettled(msgspec.Struct, frozen=True, kw_only=True):
    """`credit.charge.settled`: one ledger entry of a call, told after its commit, at least once.

    `account_seq` numbers all entries of an account without gaps. A reader drops what it has seen; a
    number that never comes is an entry of no call, or a message missed: the transactions say which.
    Nothing of the call's content is in it.
    """

    version: int = SETTLED_VERSION
    event_id: str  # the call
    revision: int  # 1 a sweeper's estimate, 2 the owner's final
    entry_id: str  # the ledger entry: the call's id, or "<id>:final" for a difference
    account: str
    account_seq: int | None  # None: a free call of an account that has no row
    amount: int  # micro-credits; negative: the account paid
    balance_after: int  # micro-credits
    posted_at: int  # milliseconds since the epoch


class Sorted(msgspec.Struct, frozen=True):
    """What a batch asks for: rows to settle (each once), and messages that cannot be read."""

    keys: tuple[EventKey, ...]
    strays: tuple[StrayMessage, ...]


def sort_out(payloads: Iterable[bytes]) -> Sorted:
    """Read a batch; never raises, whatever the messages hold."""
    keys: dict[EventKey, None] = {}
    strays: list[StrayMessage] = []
    for payload in payloads:
        key, reason = _read(payload)
        if key is not None:
            keys[key.event_id, key.revision] = None
        if reason:
            strays.append(_stray(payload, reason, key))
    return Sorted(tuple(keys), tuple(strays))


def settled_message(entry: LedgerEntry) -> Outgoing | None:
    """What others are told of an entry; None if it belongs to no call."""
    if entry.usage_event_id is None or entry.usage_revision is None:
        return None
    settled = ChargeSettled(
        event_id=entry.usage_event_id,
        revision=entry.usage_revision,
        entry_id=entry.event_id,
        account=entry.account,
        account_seq=entry.account_seq,
        amount=entry.amount,
        balance_after=entry.balance_after,
        posted_at=entry.posted_at,
    )
    return Outgoing(topic=SETTLED_TOPIC, key=entry.account, payload=_encoder.encode(settled))


class _Context(msgspec.Struct, frozen=True):
    event_id: str
    account: str


class _Head(msgspec.Struct, frozen=True):
    """The part of a charge event that names its row; all else is skipped, not read."""

    version: int
    revision: int
    context: _Context


class _Version(msgspec.Struct, frozen=True):
    version: int


class _Name(msgspec.Struct, frozen=True):
    event_id: str
    revision: int
    account: str


def _read(payload: bytes) -> tuple[_Name | None, str]:
    """The row that a message names, and what is wrong with the message.

    A version that we do not know may still name a row: settling it is what puts the row, whose
    event has that version too, into quarantine.
    """
    try:
        head = _head_decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None, _why_unreadable(payload)
    reason = "" if head.version == EVENT_VERSION else f"unknown version {head.version}"
    context = head.context
    if not _ID.fullmatch(context.event_id) or head.revision not in (1, 2):
        return None, reason or "the message names no event"
    return _Name(context.event_id, head.revision, context.account), reason


def _why_unreadable(payload: bytes) -> str:
    try:
        version = _version_decoder.decode(payload).version
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "the message cannot be read"
    return (
        "the message cannot be read" if version == EVENT_VERSION else f"unknown version {version}"
    )


def _stray(payload: bytes, reason: str, name: _Name | None) -> StrayMessage:
    return StrayMessage(
        event_id=name.event_id if name else "",
        revision=name.revision if name else 0,
        account=name.account if name and _ID.fullmatch(name.account) else "",
        reason=reason,
        payload=payload[:QUARANTINED_BYTES_MAX],
    )


_encoder: Final = msgspec.json.Encoder()
_head_decoder: Final = msgspec.json.Decoder(_Head)
_version_decoder: Final = msgspec.json.Decoder(_Version)
