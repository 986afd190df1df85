"""Entries of the ledger."""

from typing import TYPE_CHECKING, Literal

import msgspec

from llm_gateway.api.views.shared import Listing, Time, cursor, moment

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.accounts import Transaction
    from billing.lists import Page


class TransactionView(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the ledger."""

    transaction_id: str
    event_id: str
    source: str
    source_label: str
    direction: str
    amount_micro_credits: int
    balance_after_micro_credits: int
    status: str
    description: str
    metadata_json: str
    created_at: Time
    order_id: str | None
    source_ref_id: str | None


class TransactionList(Listing, frozen=True, kw_only=True):
    """A page of an account's transactions, newest first."""

    items: list[TransactionView]
    source: Literal["db", "cache"]


def transaction_view(entry: "Transaction") -> TransactionView:
    """A ledger entry; the event id is unique in the ledger, so it is the transaction's id too."""
    return TransactionView(
        transaction_id=entry.event_id,
        event_id=entry.event_id,
        source=entry.source,
        source_label=entry.source_label,
        direction=entry.direction,
        amount_micro_credits=entry.amount,
        balance_after_micro_credits=entry.balance_after,
        status=entry.status,
        description=entry.description,
        metadata_json=entry.metadata_json,
        created_at=moment(entry.created_at),
        order_id=entry.order_id,
        source_ref_id=entry.source_ref_id,
    )


def transaction_list(page: "Page[Transaction]") -> TransactionList:
    """A page of transactions."""
    return TransactionList(
        items=[transaction_view(entry) for entry in page.items],
        page=page.page,
        page_size=page.page_size,
        total=page.total,
        has_more=page.has_more,
        next_after=cursor(page.next_after),
        source="db",
    )
