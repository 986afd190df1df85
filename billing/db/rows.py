"""Pure: values as rows of the tables and back, in the order of the columns; both engines share it."""

from typing import Final

import msgspec

from billing.context import decode_context
from billing.db.hot import EventConflictError
from billing.events import (
    ChargeEvent,
    Finish,
    Revision,
    UsageNotes,
    UsageQuality,
    UsageSource,
    payload_hash,
)
from billing.holds import HoldRequest
from billing.ledger import Account, EventConflict, LedgerEntry
from pricing_rules.usage import Usage

Value = str | int | bytes | None
Row = tuple[Value, ...]

USAGE_COLUMNS: Final = (
    "event_id, revision, cancelled, account, key_id, app, scene, provider, model_requested,"
    " model_sent, run_id, client_request_id, book, rule, input, cached_input, cache_write_5m,"
    " cache_write_1h, audio_input, image_input, output, reasoning, audio_output, quality,"
    " usage_source, amount, ceiling, reason, raw_usage, upstream_request_id, failed_attempts,"
    " payload_hash, started_at, finished_at"
)
OUTBOX_COLUMNS: Final = "event_id, revision, cancelled, account, payload, payload_hash, created_at"
HOLD_COLUMNS: Final = "hold_id, account, amount, process, started_at, context"
ENTRY_COLUMNS: Final = ", ".join(LedgerEntry.__struct_fields__)
ACCOUNT_COLUMNS: Final = ", ".join(Account.__struct_fields__)
QUARANTINE_COLUMNS: Final = "event_id, revision, account, origin, reason, payload, created_at"

# The columns that two records of one event id and revision must agree on.
IDENTITY_COLUMNS: Final = ("account", "book", "rule", "amount", "cancelled")


class Waiting(msgspec.Struct, frozen=True):
    """An outbox row on its way into the ledger."""

    event_id: str
    revision: int
    cancelled: bool | int
    account: str
    payload: bytes
    payload_hash: str


def hold_row(request: HoldRequest, amount: int) -> Row:
    """HOLD_COLUMNS of a granted hold."""
    return (
        request.hold_id,
        request.account,
        amount,
        request.process,
        request.started_at,
        request.context,
    )


def usage_row(finish: Finish, digest: str) -> Row:
    """USAGE_COLUMNS of a finished call."""
    event, notes = finish.event, finish.notes
    context, used = event.context, event.usage
    return (
        context.event_id,
        event.revision,
        finish.cancelled,
        context.account,
        context.key_id,
        context.app,
        context.scene,
        context.provider,
        context.model_requested,
        context.model_sent,
        context.run_id,
        context.client_request_id,
        context.book,
        context.rule,
        used.input,
        used.cached_input,
        used.cache_write_5m,
        used.cache_write_1h,
        used.audio_input,
        used.image_input,
        used.output,
        used.reasoning,
        used.audio_output,
        event.quality,
        event.usage_source,
        event.amount,
        event.ceiling,
        notes.reason,
        notes.raw_usage or None,
        notes.upstream_request_id,
        notes.failed_attempts,
        digest,
        context.started_at,
        event.finished_at,
    )


def outbox_row(finish: Finish, digest: str, now: int) -> Row:
    """OUTBOX_COLUMNS of a finished call."""
    event = finish.event
    return (
        event.context.event_id,
        event.revision,
        finish.cancelled,
        event.context.account,
        _encoder.encode(event),
        digest,
        now,
    )


def digest_of(finish: Finish) -> str:
    """What usage and outbox row keep of the money fields."""
    return payload_hash(finish.event)


def record_conflict(finish: Finish, recorded: Row) -> EventConflictError | None:
    """The first of IDENTITY_COLUMNS in which `recorded` differs from this record of the event."""
    event = finish.event
    context = event.context
    given = (context.account, context.book, context.rule, event.amount, finish.cancelled)
    for field, was, new in zip(IDENTITY_COLUMNS, recorded, given, strict=True):
        if was != new:
            return EventConflictError(
                EventConflict(
                    event_id=context.event_id,
                    field=field,
                    existing=str(int(was) if isinstance(was, bool) else was),
                    given=str(int(new) if isinstance(new, bool) else new),
                )
            )
    return None


def quarantine_row(finish: Finish, origin: str, reason: str, now: int) -> Row:
    """QUARANTINE_COLUMNS of a finished call."""
    context = finish.event.context
    payload = _encoder.encode(finish.event)
    return (
        context.event_id,
        finish.event.revision,
        context.account,
        origin,
        reason,
        payload,
        now,
    )


def quarantine_row_of(row: Waiting, reason: str, now: int) -> Row:
    """QUARANTINE_COLUMNS of an outbox row."""
    return (row.event_id, row.revision, row.account, "outbox", reason, row.payload, now)


def orphan_estimate(
    hold_id: str, account: str, amount: int, progress: int, context: bytes, now: int
) -> Finish | Row | None:
    """The estimate of a call whose process is gone; or the quarantine's row, if it is unreadable.

    None: it is no call's, and whoever carries on that debit lets go of it.
    """
    try:
        event = ChargeEvent(
            revision=Revision.ESTIMATE,
            context=decode_context(context),
            usage=Usage(),
            quality=UsageQuality.PARTIAL,
            usage_source=UsageSource.HOLD,
            amount=progress,
            ceiling=amount,
            finished_at=now,
        )
    except msgspec.MsgspecError:
        reason = "the hold's context cannot be read"
        return (hold_id, Revision.ESTIMATE, account, "hold", reason, context, now)
    if not event.context.is_call:
        return None
    return Finish(event=event, notes=UsageNotes(reason="orphaned"))


def account_of(row: Row) -> Account:
    """An account out of ACCOUNT_COLUMNS."""
    fields = dict(zip(Account.__struct_fields__, row, strict=True))
    fields["suspended"] = bool(fields["suspended"])  # SQLite knows no boolean
    return Account(**fields)  # type: ignore[arg-type]  # quicker than a conversion of each field


def entry_of(row: Row) -> LedgerEntry:
    """An entry out of ENTRY_COLUMNS."""
    return msgspec.convert(dict(zip(LedgerEntry.__struct_fields__, row, strict=True)), LedgerEntry)


_encoder: Final = msgspec.json.Encoder()
