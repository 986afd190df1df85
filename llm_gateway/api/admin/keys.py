"""/admin/keys: make, list, revoke."""

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody

from billing.accounts import is_account_id
from billing.keys import KeyKind, NewKey
from billing.lists import PageRequest
from llm_gateway import errors
from llm_gateway.api.admin.params import AccountId, wrong_account
from llm_gateway.api.deps import ADMIN_ACTOR
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.keys import KeyList, KeyRequest, KeyView, NewKeyView, key_view
from llm_gateway.api.views.shared import milliseconds


class KeysController(Controller):
    """API keys."""

    path = "/keys"

    @get("/")
    async def list_keys(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        account: AccountId = "",
    ) -> KeyList:
        """List keys, newest first, of one account or all."""
        page = await api.keys.page(listing, account=account)
        return KeyList(
            items=[key_view(key) for key in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/")
    async def create_key(
        self, api: NamedDependency[ApiState], data: JSONBody[KeyRequest]
    ) -> NewKeyView:
        """Make a key. The token is in this answer and can never be shown again."""
        info, token = await api.keys.create(_new_key(data, api.now_ms()), actor=ADMIN_ACTOR)
        return NewKeyView(key=key_view(info), token=token)

    @post("/{key_id:str}/revoke", status_code=200)
    async def revoke_key(self, api: NamedDependency[ApiState], key_id: FromPath[str]) -> KeyView:
        """Withdraw a key for good; other processes refuse it within a second."""
        info = await api.keys.revoke(key_id, actor=ADMIN_ACTOR)
        if info is None:
            raise errors.NotFoundError("There is no such key.")
        return key_view(info)


def _new_key(data: KeyRequest, now_ms: int) -> NewKey:
    """Check what the shape alone does not say."""
    if data.kind is KeyKind.USER:
        if not is_account_id(data.account):
            raise wrong_account("account")
        if data.app or data.accounts:
            raise errors.InvalidRequestError(
                "A user key has neither app nor accounts.", param="app"
            )
    else:
        if not data.app.strip():
            raise errors.InvalidRequestError("An app key needs the name of its app.", param="app")
        if data.account:
            raise errors.InvalidRequestError(
                "An app key has no account of its own; `accounts` restricts what it may bill.",
                param="account",
            )
    if not all(is_account_id(account) for account in data.accounts):
        raise wrong_account("accounts")
    expires_at = None if data.expires_at is None else milliseconds(data.expires_at)
    if expires_at is not None and expires_at <= now_ms:
        raise errors.InvalidRequestError("expires_at lies in the past.", param="expires_at")
    return NewKey(
        kind=data.kind,
        account=data.account,
        app=data.app.strip(),
        accounts=tuple(data.accounts),
        default_scene=data.default_scene,
        scenes=tuple(data.scenes),
        models=tuple(data.models),
        description=data.description,
        expires_at=expires_at,
    )
