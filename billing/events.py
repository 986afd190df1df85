"""The charge event `credit.charge.requested`: what a finished call costs, as gateway and ledger tell each other."""

import hashlib
from enum import StrEnum
from typing import Final

import msgspec

from billing.context import BillingContext
from pricing_rules.usage import Usage

TOPIC: Final = "credit.charge.requested"
EVENT_VERSION: Final = 1


class Revision:
    """Which word on a call an event is: a sweeper's estimate gives way to the owner's final."""

    ESTIMATE: Final = 1
    FINAL: Final = 2


class UsageQuality(StrEnum):
    """How far the token counts of a charge can be trusted."""

    EXACT = "exact"  # reported by the provider, whole
    PARTIAL = "partial"  # the answer broke off: input and what was delivered
    ESTIMATED = "estimated"  # the provider reported nothing: counted by us
    MISSING = "missing"  # nothing reported and nothing to count
    SUSPICIOUS = "suspicious"  # reported, but contradicts itself: counted by us, raw kept


class UsageSource(StrEnum):
    """Where the token counts of a charge came from."""

    PROVIDER = "provider"
    COUNTED = "counted"  # tokens counted with the model's own vocabulary
    BYTES = "bytes"  # tokens estimated from bytes
    HOLD = "hold"  # the ceiling or the last progress known to the hold
    NONE = "none"


class ChargeEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One finished call: its context, what was used, what it costs (micro-credits, never negative)."""

    version: int = EVENT_VERSION
    revision: int
    context: BillingContext
    usage: Usage
    quality: UsageQuality
    usage_source: UsageSource
    amount: int  # micro-credits
    ceiling: int  # micro-credits held for the call at its end
    finished_at: int  # milliseconds since the epoch


class UsageNotes(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a usage row keeps beside the event; never part of its identity."""

    reason: str = ""  # why nothing is charged, or how the call ended ("client_gone", "cut", ...)
    raw_usage: bytes = b""  # the provider's own usage object, as JSON; no text of the call
    upstream_request_id: str = ""
    failed_attempts: int = 0  # targets tried before the one that answered


class Finish(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner of a call decided at its end: a charge, or (cancelled) that nothing is charged."""

    event: ChargeEvent
    notes: UsageNotes
    cancelled: bool = False


def payload_hash(event: ChargeEvent) -> str:
    """SHA-256 over the money fields only: two events of one id and revision must agree on them."""
    money = (
        event.context.event_id,
        event.revision,
        event.context.account,
        event.context.book,
        event.context.rule,
        event.amount,
    )
    return hashlib.sha256(_encoder.encode(money)).hexdigest()


_encoder = msgspec.json.Encoder()
