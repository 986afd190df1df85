"""Tokens of administrators, without themselves."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from billing.kinds import Role
from llm_gateway.api.views.shared import Listing, Time, moment, moment_or_none

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.admins import AdminToken


class AdminTokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A token without itself, of which `prefix` is all that is kept."""

    token_id: str
    name: str
    role: Role
    prefix: str
    created_by: str
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None


class AdminTokenList(Listing, frozen=True, kw_only=True):
    """A page of tokens, newest first."""

    items: list[AdminTokenView]


class AdminTokenRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A token to make; the name stands in the audit trail and is used once, for ever."""

    name: Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._@-]{0,63}$(?!\n)")]
    role: Role
    expires_at: Annotated[Time, Meta(tz=True)] | None = None


class NewAdminTokenView(msgspec.Struct, frozen=True, kw_only=True):
    """A new token, which is shown this once."""

    admin: AdminTokenView
    token: str


def admin_token_view(token: "AdminToken") -> AdminTokenView:
    """A token without itself."""
    values = msgspec.structs.asdict(token) | {
        "created_at": moment(token.created_at),
        "expires_at": moment_or_none(token.expires_at),
        "revoked_at": moment_or_none(token.revoked_at),
    }
    return msgspec.convert(values, AdminTokenView)
