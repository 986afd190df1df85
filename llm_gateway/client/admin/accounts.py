"""Accounts, and credit that is given, taken and given back."""

from typing import Literal

from llm_gateway.api.views.accounts import AccountList, AccountView, NewAccount
from llm_gateway.api.views.corrections import (
    AdjustmentRequest,
    CorrectionDoneView,
    CorrectionList,
    CorrectionView,
    RefundRequest,
)
from llm_gateway.api.views.grants import GrantView, NewGrant
from llm_gateway.api.views.shared import Reason
from llm_gateway.client.methods import AskList, get, pages, post
from llm_gateway.client.requests import PAGE_SIZE, Ask

CorrectionKind = Literal["adjustment", "charge_refund", "order_refund"]


class Accounts:
    """Accounts and corrections of their credit."""

    @pages("/admin/accounts")
    def accounts(
        self, *, contains: str = "", page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[AccountList, AccountView]:
        """List accounts in the order of their ids; `contains` looks in id and name."""
        return AskList(AccountList, page=page, page_size=page_size, after=after, contains=contains)

    @post("/admin/accounts")
    def create_account(self, account: str, *, name: str = "", note: str = "") -> Ask[AccountView]:
        """Make an account with a balance of 0."""
        return Ask(AccountView, body=NewAccount(account=account, name=name, note=note))

    @get("/admin/accounts/{account}")
    def account(self, account: str) -> Ask[AccountView]:
        """Get one account."""
        return Ask(AccountView, account)

    @post("/admin/accounts/{account}/suspend")
    def suspend_account(self, account: str, *, reason: str) -> Ask[AccountView]:
        """Admit no further call of the account."""
        return Ask(AccountView, account, body=Reason(reason=reason), repeatable=True)

    @post("/admin/accounts/{account}/unsuspend")
    def unsuspend_account(self, account: str) -> Ask[AccountView]:
        """Admit calls again."""
        return Ask(AccountView, account, repeatable=True)

    @post("/admin/accounts/{account}/adjust")
    def adjust_account(
        self,
        account: str,
        *,
        amount_micro_credits: int,
        reason: str,
        idempotency_key: str | None = None,
    ) -> Ask[CorrectionDoneView]:
        """Give credit, or take it, with a reason.

        Without an Idempotency-Key each call of this method has its own.
        """
        body = AdjustmentRequest(amount_micro_credits=amount_micro_credits, reason=reason)
        return Ask(CorrectionDoneView, account, body=body).once(idempotency_key)

    @post("/admin/grants")
    def grant(
        self,
        account: str,
        *,
        amount_micro_credits: int,
        description: str = "",
        source: str = "manual",
        source_label: str = "",
        event_id: str = "",
        idempotency_key: str | None = None,
    ) -> Ask[GrantView]:
        """Give credit. Without an event id or Idempotency-Key each call of this method has its own."""
        body = NewGrant(
            account=account,
            amount_micro_credits=amount_micro_credits,
            event_id=event_id,
            description=description,
            source=source,
            source_label=source_label,
        )
        if event_id and idempotency_key is None:
            return Ask(GrantView, body=body, repeatable=True)
        return Ask(GrantView, body=body).once(idempotency_key)

    @post("/admin/charges/{event_id}/refund")
    def refund_charge(
        self,
        event_id: str,
        *,
        reason: str,
        amount_micro_credits: int | None = None,
        idempotency_key: str | None = None,
    ) -> Ask[CorrectionDoneView]:
        """Give back a call's charge; without an amount, all that is left of it."""
        body = RefundRequest(amount_micro_credits=amount_micro_credits, reason=reason)
        return Ask(CorrectionDoneView, event_id, body=body).once(idempotency_key)

    @pages("/admin/corrections")
    def corrections(
        self,
        *,
        account: str = "",
        ref_id: str = "",
        kind: CorrectionKind | None = None,
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[CorrectionList, CorrectionView]:
        """List corrections, newest first; `ref_id` is a charge or an order."""
        return AskList(
            CorrectionList,
            page=page,
            page_size=page_size,
            after=after,
            account=account,
            ref_id=ref_id,
            kind=kind,
        )
