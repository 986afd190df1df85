"""Keys of users and apps, and tokens of administrators.

What makes one is not sent again when no answer came: the key would be lost, and good.
"""

from collections.abc import Sequence
from datetime import datetime

from msgspec import UNSET, UnsetType

from billing.kinds import KeyKind, Role
from llm_gateway.api.views.admin_tokens import (
    AdminTokenList,
    AdminTokenRequest,
    AdminTokenView,
    NewAdminTokenView,
)
from llm_gateway.api.views.keys import (
    KeyList,
    KeyPatch,
    KeyRequest,
    KeyView,
    NewKeyView,
    RotatedView,
    Rotation,
)
from llm_gateway.client.methods import AskList, get, pages, patch, post
from llm_gateway.client.requests import PAGE_SIZE, Ask


class Keys:
    """Keys, and tokens of administrators."""

    @pages("/admin/keys")
    def keys(
        self, *, account: str = "", page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[KeyList, KeyView]:
        """List keys, newest first, of one account or all."""
        return AskList(KeyList, page=page, page_size=page_size, after=after, account=account)

    @post("/admin/keys")
    def create_key(
        self,
        kind: KeyKind,
        *,
        account: str = "",
        app: str = "",
        accounts: Sequence[str] = (),
        default_scene: str = "default",
        scenes: Sequence[str] = (),
        models: Sequence[str] = (),
        description: str = "",
        expires_at: datetime | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        concurrent_calls: int | None = None,
    ) -> Ask[NewKeyView]:
        """Make a key: a user's names its account, an app's its app. The token is shown this once."""
        body = KeyRequest(
            kind=kind,
            account=account,
            app=app,
            accounts=list(accounts),
            default_scene=default_scene,
            scenes=list(scenes),
            models=list(models),
            description=description,
            expires_at=expires_at,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrent_calls=concurrent_calls,
        )
        return Ask(NewKeyView, body=body)

    @get("/admin/keys/{key_id}")
    def key(self, key_id: str) -> Ask[KeyView]:
        """Get one key, without its token."""
        return Ask(KeyView, key_id)

    @patch("/admin/keys/{key_id}")
    def update_key(
        self,
        key_id: str,
        *,
        default_scene: str | UnsetType = UNSET,
        scenes: Sequence[str] | UnsetType = UNSET,
        models: Sequence[str] | UnsetType = UNSET,
        description: str | UnsetType = UNSET,
        expires_at: datetime | UnsetType | None = UNSET,
        requests_per_minute: int | UnsetType | None = UNSET,
        tokens_per_minute: int | UnsetType | None = UNSET,
        concurrent_calls: int | UnsetType | None = UNSET,
    ) -> Ask[KeyView]:
        """Change what a key may do; what is not given stays. A limit or end that is None is none."""
        body = KeyPatch(
            default_scene=default_scene,
            scenes=scenes if isinstance(scenes, UnsetType) else list(scenes),
            models=models if isinstance(models, UnsetType) else list(models),
            description=description,
            expires_at=expires_at,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrent_calls=concurrent_calls,
        )
        return Ask(KeyView, key_id, body=body, repeatable=True)

    @post("/admin/keys/{key_id}/rotate")
    def rotate_key(self, key_id: str, *, grace_seconds: int = 0) -> Ask[RotatedView]:
        """Make a key in the place of this one, which stays good for `grace_seconds`."""
        return Ask(RotatedView, key_id, body=Rotation(grace_seconds=grace_seconds))

    @post("/admin/keys/{key_id}/revoke")
    def revoke_key(self, key_id: str) -> Ask[KeyView]:
        """Withdraw a key for good."""
        return Ask(KeyView, key_id, repeatable=True)

    @pages("/admin/tokens")
    def tokens(
        self, *, page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[AdminTokenList, AdminTokenView]:
        """List administrators' tokens, newest first."""
        return AskList(AdminTokenList, page=page, page_size=page_size, after=after)

    @post("/admin/tokens")
    def create_token(
        self, name: str, *, role: Role, expires_at: datetime | None = None
    ) -> Ask[NewAdminTokenView]:
        """Make an administrator's token, which is shown this once."""
        body = AdminTokenRequest(name=name, role=role, expires_at=expires_at)
        return Ask(NewAdminTokenView, body=body)

    @post("/admin/tokens/{token_id}/revoke")
    def revoke_token(self, token_id: str) -> Ask[AdminTokenView]:
        """Withdraw a token for good."""
        return Ask(AdminTokenView, token_id, repeatable=True)
