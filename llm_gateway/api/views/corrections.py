"""Corrections of the ledger by administrators."""

from typing import TYPE_CHECKING

import msgspec

from billing.kinds import CorrectionKind
from llm_gateway.api.views.shared import (
    Amount,
    Listing,
    MicroCredits,
    ReasonText,
    Time,
    moment,
    moment_or_none,
)
from llm_gateway.api.views.transactions import TransactionView, transaction_view

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.corrections import Correction, CorrectionDone


class AdjustmentRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Credit to give (above 0) or take (below); it is taken whole, below a balance of 0 if need be."""

    amount_micro_credits: MicroCredits
    reason: ReasonText


class RefundRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How much to refund; left out: all that was not refunded yet."""

    amount_micro_credits: Amount | None = None
    reason: ReasonText


class CorrectionView(msgspec.Struct, frozen=True, kw_only=True):
    """A correction; `posted_at` null: its entry is on its way."""

    event_id: str
    kind: CorrectionKind
    account: str
    ref_id: str | None
    wanted_micro_credits: int
    amount_micro_credits: int | None
    reason: str
    actor: str
    created_at: Time
    posted_at: Time | None


class CorrectionList(Listing, frozen=True, kw_only=True):
    """A page of corrections, newest first."""

    items: list[CorrectionView]


class CorrectionDoneView(msgspec.Struct, frozen=True, kw_only=True):
    """A correction and its entry; of an order's refund the entry may take less than was wanted."""

    repeated: bool
    correction: CorrectionView
    entry: TransactionView


def correction_view(correction: "Correction") -> CorrectionView:
    """A correction."""
    values = msgspec.structs.asdict(correction) | {
        "wanted_micro_credits": correction.wanted,
        "amount_micro_credits": correction.amount,
        "created_at": moment(correction.created_at),
        "posted_at": moment_or_none(correction.posted_at),
    }
    return msgspec.convert(values, CorrectionView)


def correction_done_view(done: "CorrectionDone") -> CorrectionDoneView:
    """A correction and its entry."""
    return CorrectionDoneView(
        repeated=done.repeated,
        correction=correction_view(done.correction),
        entry=transaction_view(done.entry),
    )
