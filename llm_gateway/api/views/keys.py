"""API keys, without their tokens."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from billing.kinds import KeyKind
from llm_gateway.api.views.shared import (
    AccountName,
    AccountNameOrNone,
    Limit,
    Listing,
    Name,
    Text,
    Time,
    moment,
    moment_or_none,
)

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.keys import KeyInfo

# Names, or prefixes that end in "*".
Models = Annotated[
    list[Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[!-~]+$(?!\n)")]],
    Meta(max_length=1000),
]
Scenes = Annotated[list[Name], Meta(max_length=100)]


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
    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_calls: int | None
    replaced_by: str | None
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
    account: AccountNameOrNone = ""
    app: Annotated[str, Meta(max_length=64, pattern=r"^[!-~]*$(?!\n)")] = ""
    accounts: Annotated[list[AccountName], Meta(max_length=1000)] = []
    default_scene: Name
    scenes: Scenes = []
    models: Models = []
    description: Text = ""
    expires_at: Annotated[Time, Meta(tz=True)] | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent_calls: Limit | None = None


class KeyPatch(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change of a key; what is not sent stays. A limit or end that is null is none."""

    default_scene: Name | UnsetType = UNSET
    scenes: Scenes | UnsetType = UNSET
    models: Models | UnsetType = UNSET
    description: Text | UnsetType = UNSET
    expires_at: Annotated[Time, Meta(tz=True)] | UnsetType | None = UNSET
    requests_per_minute: Limit | UnsetType | None = UNSET
    tokens_per_minute: Limit | UnsetType | None = UNSET
    concurrent_calls: Limit | UnsetType | None = UNSET


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """For how long the old key stays good beside the new one; 0: not at all."""

    grace_seconds: Annotated[int, Meta(ge=0, le=30 * 86_400)] = 0


class NewKeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A new key and its token, which is shown this once."""

    key: KeyView
    token: str


class RotatedView(msgspec.Struct, frozen=True, kw_only=True):
    """The new key, its token, which is shown this once, and the old key with its end."""

    key: KeyView
    token: str
    old: KeyView


def key_view(key: "KeyInfo") -> KeyView:
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
        requests_per_minute=key.requests_per_minute,
        tokens_per_minute=key.tokens_per_minute,
        concurrent_calls=key.concurrent_calls,
        replaced_by=key.replaced_by,
        revoked=key.revoked,
        created_at=moment(key.created_at),
        expires_at=moment_or_none(key.expires_at),
        revoked_at=moment_or_none(key.revoked_at),
    )
