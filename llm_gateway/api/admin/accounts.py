"""/admin/accounts: list, make, adjust, suspend."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from billing.admins import Admin, Permission
from billing.corrections import Adjustment
from billing.lists import PageRequest
from llm_gateway.api.admin.params import Filter
from llm_gateway.api.deps import IdempotencyKey
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.accounts import AccountList, AccountView, NewAccount, account_view
from llm_gateway.api.views.corrections import (
    AdjustmentRequest,
    CorrectionDoneView,
    correction_done_view,
)
from llm_gateway.api.views.shared import Reason


class AccountsController(Controller):
    """Accounts. An account also comes into being with its first grant or purchase."""

    path = "/accounts"

    @get("/", permission=Permission.READ)
    async def list_accounts(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        contains: Filter = "",
    ) -> AccountList:
        """List accounts in the order of their ids; `contains` looks in id and name."""
        page = await api.accounts.page(listing, contains=contains)
        return AccountList(
            items=[account_view(info) for info in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/", permission=Permission.ACCOUNTS)
    async def create_account(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[NewAccount],
    ) -> AccountView:
        """Make an account with a balance of 0; 409 if there is one by this id."""
        info = await api.accounts.create(
            data.account, name=data.name, remark=data.note, actor=admin.name
        )
        return account_view(info)

    @get("/{account:str}", permission=Permission.READ)
    async def get_account(
        self, api: NamedDependency[ApiState], account: FromPath[str]
    ) -> AccountView:
        """Get one account."""
        return account_view(await api.accounts.get(account))

    @post("/{account:str}/adjust", status_code=200, permission=Permission.ADJUSTMENTS)
    async def adjust(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        account: FromPath[str],
        data: JSONBody[AdjustmentRequest],
        idempotency_key: IdempotencyKey = "",
    ) -> CorrectionDoneView:
        """Give or take credit with a reason. With an Idempotency-Key, repeating does it once."""
        asked = Adjustment(
            account=account,
            amount=data.amount_micro_credits,
            reason=data.reason,
            idempotency_key=idempotency_key.strip() or None,
        )
        return correction_done_view(await api.shop.corrections.adjust(asked, actor=admin.name))

    @post("/{account:str}/suspend", status_code=200, permission=Permission.SUSPEND)
    async def suspend(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        account: FromPath[str],
        data: JSONBody[Reason],
    ) -> AccountView:
        """Admit no further call of the account; calls that run are not cut."""
        return account_view(await api.accounts.suspend(account, data.reason, actor=admin.name))

    @post("/{account:str}/unsuspend", status_code=200, permission=Permission.SUSPEND)
    async def unsuspend(
        self, api: NamedDependency[ApiState], admin: NamedDependency[Admin], account: FromPath[str]
    ) -> AccountView:
        """Admit calls again."""
        return account_view(await api.accounts.unsuspend(account, actor=admin.name))
