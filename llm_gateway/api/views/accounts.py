"""Accounts and balances."""

from typing import TYPE_CHECKING, Literal

import msgspec

from llm_gateway.api.views.shared import AccountName, Line, Listing, Text, Time, moment_or_none

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.accounts import AccountInfo


class BalanceView(msgspec.Struct, frozen=True, kw_only=True):
    """What an account has; zeros if nothing was ever posted to it."""

    account: str
    balance_micro_credits: int
    held_micro_credits: int
    available_micro_credits: int
    total_recharged_micro_credits: int
    total_rewarded_micro_credits: int
    total_consumed_micro_credits: int
    total_refunded_micro_credits: int
    total_expired_micro_credits: int
    total_adjusted_micro_credits: int
    blocked: bool
    suspended: bool
    seq: int
    updated_at: Time | None
    source: Literal["db", "cache"]


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """An account as an administrator sees it."""

    account: str
    name: str
    note: str
    balance_micro_credits: int
    held_micro_credits: int
    available_micro_credits: int
    total_recharged_micro_credits: int
    total_rewarded_micro_credits: int
    total_consumed_micro_credits: int
    total_refunded_micro_credits: int
    total_expired_micro_credits: int
    total_adjusted_micro_credits: int
    blocked: bool
    suspended: bool
    suspended_reason: str
    seq: int
    created_at: Time | None
    updated_at: Time | None


class AccountList(Listing, frozen=True, kw_only=True):
    """A page of accounts, in the order of their ids."""

    items: list[AccountView]


class NewAccount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An account to make; the id is the user's id with the calling services."""

    account: AccountName
    name: Line = ""
    note: Text = ""


def balance_view(info: "AccountInfo") -> BalanceView:
    """An account's balance as its owner sees it."""
    return BalanceView(
        account=info.account,
        balance_micro_credits=info.balance,
        held_micro_credits=info.held,
        available_micro_credits=info.available,
        total_recharged_micro_credits=info.total_recharged,
        total_rewarded_micro_credits=info.total_rewarded,
        total_consumed_micro_credits=info.total_consumed,
        total_refunded_micro_credits=info.total_refunded,
        total_expired_micro_credits=info.total_expired,
        total_adjusted_micro_credits=info.total_adjusted,
        blocked=info.blocked,
        suspended=info.suspended,
        seq=info.seq,
        updated_at=moment_or_none(info.updated_at),
        source="db",
    )


def account_view(info: "AccountInfo") -> AccountView:
    """An account as an administrator sees it."""
    return AccountView(
        account=info.account,
        name=info.name,
        note=info.note,
        balance_micro_credits=info.balance,
        held_micro_credits=info.held,
        available_micro_credits=info.available,
        total_recharged_micro_credits=info.total_recharged,
        total_rewarded_micro_credits=info.total_rewarded,
        total_consumed_micro_credits=info.total_consumed,
        total_refunded_micro_credits=info.total_refunded,
        total_expired_micro_credits=info.total_expired,
        total_adjusted_micro_credits=info.total_adjusted,
        blocked=info.blocked,
        suspended=info.suspended,
        suspended_reason=info.suspended_reason,
        seq=info.seq,
        created_at=moment_or_none(info.created_at),
        updated_at=moment_or_none(info.updated_at),
    )
