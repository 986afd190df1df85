"""/admin/accounts: list, make, suspend."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from billing.accounts import is_account_id
from billing.lists import PageRequest
from llm_gateway.api.admin.params import Filter, wrong_account
from llm_gateway.api.deps import ADMIN_ACTOR
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.accounts import AccountList, AccountView, NewAccount, account_view
from llm_gateway.api.views.shared import Reason


class AccountsController(Controller):
    """Accounts. An account also comes into being with its first grant or purchase."""

    path = "/accounts"

    @get("/")
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

    @post("/")
    async def create_account(
        self, api: NamedDependency[ApiState], data: JSONBody[NewAccount]
    ) -> AccountView:
        """Make an account with a balance of 0; 409 if there is one by this id."""
        if not is_account_id(data.account):
            raise wrong_account("account")
        info = await api.accounts.create(
            data.account, name=data.name, remark=data.note, actor=ADMIN_ACTOR
        )
        return account_view(info)

    @get("/{account:str}")
    async def get_account(
        self, api: NamedDependency[ApiState], account: FromPath[str]
    ) -> AccountView:
        """Get one account."""
        return account_view(await api.accounts.get(account))

    @post("/{account:str}/suspend", status_code=200)
    async def suspend(
        self, api: NamedDependency[ApiState], account: FromPath[str], data: JSONBody[Reason]
    ) -> AccountView:
        """Admit no further call of the account; calls that run are not cut."""
        return account_view(await api.accounts.suspend(account, data.reason, actor=ADMIN_ACTOR))

    @post("/{account:str}/unsuspend", status_code=200)
    async def unsuspend(
        self, api: NamedDependency[ApiState], account: FromPath[str]
    ) -> AccountView:
        """Admit calls again."""
        return account_view(await api.accounts.unsuspend(account, actor=ADMIN_ACTOR))
