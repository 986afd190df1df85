"""API keys, without their tokens."""

from typing import Annotated

import msgspec
from msgspec import Meta

from billing.keys import KeyInfo, KeyKind
from llm_gateway.api.views.shared import Listing, Name, Text, Time, moment, moment_or_none


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its token, of which `prefix` is all that is kept."""

    key_id: str
    kind: KeyKind
    prefix: str
    account: str
    app: str
    accounts: list[str]
    default_scene: str
    scenes: list[str]
    models: list[str]
    description: str
    revoked: bool
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None


class KeyList(Listing, frozen=True, kw_only=True):
    """A page of keys, newest first."""

    items: list[KeyView]


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to make: a user key names its account, an app key its app."""

    kind: KeyKind
    account: str = ""
    app: Annotated[str, Meta(max_length=64)] = ""
    accounts: list[str] = []
    default_scene: Name
    scenes: list[Name] = []
    models: list[Annotated[str, Meta(min_length=1, max_length=200)]] = []
    description: Text = ""
    expires_at: Annotated[Time, Meta(tz=True)] | None = None


class NewKeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A new key and its token, which is shown this once."""

    key: KeyView
    token: str


def key_view(key: KeyInfo) -> KeyView:
    """A key without its token."""
    return KeyView(
        key_id=key.key_id,
        kind=key.kind,
        prefix=key.prefix,
        account=key.account,
        app=key.app,
        accounts=list(key.accounts),
        default_scene=key.default_scene,
        scenes=list(key.scenes),
        models=list(key.models),
        description=key.description,
        revoked=key.revoked,
        created_at=moment(key.created_at),
        expires_at=moment_or_none(key.expires_at),
        revoked_at=moment_or_none(key.revoked_at),
    )
