"""/admin/keys: make, list, change, rotate, revoke."""

from litestar import Controller, get, patch, post
from litestar.di import NamedDependency
from litestar.params import FromPath, JSONBody
from msgspec import UNSET, UnsetType

from billing.accounts import ACCOUNT_ID_RULE, is_account_id
from billing.admins import Admin, Permission
from billing.keys import KeyChange, NewKey, UnknownKeyError
from billing.kinds import KeyKind
from billing.lists import PageRequest
from billing.shop.fields import Fields
from llm_gateway.api.admin.params import AccountId
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.keys import (
    KeyList,
    KeyPatch,
    KeyRequest,
    KeyView,
    NewKeyView,
    RotatedView,
    Rotation,
    key_view,
)
from llm_gateway.api.views.shared import milliseconds


class KeysController(Controller):
    """API keys."""

    path = "/keys"

    @get("/", permission=Permission.READ)
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

    @post("/", permission=Permission.KEYS)
    async def create_key(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[KeyRequest],
    ) -> NewKeyView:
        """Make a key. The token is in this answer and can never be shown again."""
        info, token = await api.keys.create(_new_key(data, api.now_ms()), actor=admin.name)
        return NewKeyView(key=key_view(info), token=token)

    @get("/{key_id:str}", permission=Permission.READ)
    async def get_key(self, api: NamedDependency[ApiState], key_id: FromPath[str]) -> KeyView:
        """Get one key, without its token."""
        info = await api.keys.get(key_id)
        if info is None:
            raise UnknownKeyError
        return key_view(info)

    @patch("/{key_id:str}", permission=Permission.KEYS)
    async def update_key(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        key_id: FromPath[str],
        data: JSONBody[KeyPatch],
    ) -> KeyView:
        """Change what a key may do; other processes go by it within a second."""
        change = _change(data, api.now_ms())
        return key_view(await api.keys.update(key_id, change, actor=admin.name))

    @post("/{key_id:str}/rotate", status_code=200, permission=Permission.KEYS)
    async def rotate_key(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        key_id: FromPath[str],
        data: JSONBody[Rotation],
    ) -> RotatedView:
        """Make a key in the place of this one, which stays good for `grace_seconds`."""
        old, new, token = await api.keys.rotate(
            key_id, grace_seconds=data.grace_seconds, actor=admin.name
        )
        return RotatedView(key=key_view(new), token=token, old=key_view(old))

    @post("/{key_id:str}/revoke", status_code=200, permission=Permission.KEYS)
    async def revoke_key(
        self, api: NamedDependency[ApiState], admin: NamedDependency[Admin], key_id: FromPath[str]
    ) -> KeyView:
        """Withdraw a key for good; other processes refuse it within a second."""
        info = await api.keys.revoke(key_id, actor=admin.name)
        if info is None:
            raise UnknownKeyError
        return key_view(info)


def _new_key(data: KeyRequest, now_ms: int) -> NewKey:
    """Check what the shape alone does not say."""
    fields = Fields()
    if data.kind is KeyKind.USER:
        fields.check("account", f"must be {ACCOUNT_ID_RULE}", ok=is_account_id(data.account))
        fields.check("app", "is for app keys", ok=not data.app)
        fields.check("accounts", "is for app keys", ok=not data.accounts)
    else:
        fields.check("app", "an app key needs the name of its app", ok=bool(data.app))
        fields.check(
            "account", "is for user keys; `accounts` says what an app may bill", ok=not data.account
        )
        ok = all(is_account_id(account) for account in data.accounts)
        fields.check("accounts", f"each must be {ACCOUNT_ID_RULE}", ok=ok)
    expires_at = None if data.expires_at is None else milliseconds(data.expires_at)
    _check_end(fields, expires_at, now_ms)
    fields.done()
    return NewKey(
        kind=data.kind,
        account=data.account,
        app=data.app,
        accounts=tuple(data.accounts),
        default_scene=data.default_scene,
        scenes=tuple(data.scenes),
        models=tuple(data.models),
        description=data.description,
        expires_at=expires_at,
        requests_per_minute=data.requests_per_minute,
        tokens_per_minute=data.tokens_per_minute,
        concurrent_calls=data.concurrent_calls,
    )


def _check_end(fields: Fields, expires_at: int | None, now_ms: int) -> None:
    fields.check("expires_at", "lies in the past", ok=expires_at is None or expires_at > now_ms)


def _change(data: KeyPatch, now_ms: int) -> KeyChange:
    expires_at: int | UnsetType | None = UNSET
    if not isinstance(data.expires_at, UnsetType):
        expires_at = None if data.expires_at is None else milliseconds(data.expires_at)
        fields = Fields()
        _check_end(fields, expires_at, now_ms)
        fields.done()
    return KeyChange(
        default_scene=data.default_scene,
        scenes=data.scenes if isinstance(data.scenes, UnsetType) else tuple(data.scenes),
        models=data.models if isinstance(data.models, UnsetType) else tuple(data.models),
        description=data.description,
        expires_at=expires_at,
        requests_per_minute=data.requests_per_minute,
        tokens_per_minute=data.tokens_per_minute,
        concurrent_calls=data.concurrent_calls,
    )
