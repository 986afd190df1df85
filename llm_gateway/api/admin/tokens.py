"""/admin/tokens: who is an administrator, and what for."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from billing.admins import Admin, NewAdminToken, Permission
from billing.lists import PageRequest
from billing.shop.fields import Fields
from llm_gateway import errors
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.admin_tokens import (
    AdminTokenList,
    AdminTokenRequest,
    AdminTokenView,
    NewAdminTokenView,
    admin_token_view,
)
from llm_gateway.api.views.shared import milliseconds


class TokensController(Controller):
    """Tokens of administrators; the owner's own is configured, and not among them."""

    path = "/tokens"

    @get("/", permission=Permission.TOKENS)
    async def list_tokens(
        self, api: NamedDependency[ApiState], listing: NamedDependency[PageRequest]
    ) -> AdminTokenList:
        """List administrators' tokens, newest first."""
        page = await api.admins.page(listing)
        return AdminTokenList(
            items=[admin_token_view(token) for token in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/", permission=Permission.TOKENS)
    async def create_token(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[AdminTokenRequest],
    ) -> NewAdminTokenView:
        """Make a token. It is in this answer and can never be shown again."""
        expires_at = None if data.expires_at is None else milliseconds(data.expires_at)
        fields = Fields()
        ok = expires_at is None or expires_at > api.now_ms()
        fields.check("expires_at", "lies in the past", ok=ok)
        fields.done()
        new = NewAdminToken(name=data.name, role=data.role, expires_at=expires_at)
        made, token = await api.admins.create(new, actor=admin.name)
        return NewAdminTokenView(admin=admin_token_view(made), token=token)

    @post("/{token_id:str}/revoke", status_code=200, permission=Permission.TOKENS)
    async def revoke_token(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        token_id: FromPath[str],
    ) -> AdminTokenView:
        """Withdraw a token for good; it opens nothing any more, in any process."""
        token = await api.admins.revoke(token_id, actor=admin.name)
        if token is None:
            raise errors.NotFoundError("There is no such token.")
        return admin_token_view(token)
