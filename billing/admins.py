"""Administrators: tokens with a role, and the one table that says which role may do what.

A token is shown once and kept as its SHA-256. It is read anew for every request, as rare as those
are: a token that was revoked opens nothing any more, in any process. The owner's first token is
configured, and not in the database; whoever has it is the administrator `admin`.
"""

import base64
import hashlib
import os
import re
from collections.abc import Callable
from enum import StrEnum
from typing import Final

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError

from billing.audit import Act, note
from billing.db.hot import DatabaseUnavailableError
from billing.db.pages import read_page
from billing.db.session import Database
from billing.db.tables import admin_tokens
from billing.kinds import Role
from billing.lists import Page, PageRequest

TOKEN_PREFIX: Final = "lga_"  # noqa: S105 - what every token begins with, no secret
TOKEN_CHARACTERS: Final = len(TOKEN_PREFIX) + 43  # 32 bytes in base64 without padding
SHOWN_CHARACTERS: Final = 10  # "lga_" and 36 of the 256 bits
OWNER_NAME: Final = "admin"
RESERVED_NAMES: Final = frozenset({OWNER_NAME, "serve"})  # actors of the audit trail
NAME_RULE: Final = "1 to 64 of a-z 0-9 . _ @ -, beginning with a letter or digit"

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")


class Permission(StrEnum):
    """What an address of the admin API asks of whoever comes."""

    READ = "read"  # everything but statements and tokens; no address shows a secret
    ACCOUNTS = "accounts"  # make them
    SUSPEND = "suspend"
    KEYS = "keys"
    HOLDS = "holds"
    QUARANTINE = "quarantine"
    GUARD = "guard"
    RECONCILE = "reconcile"  # repair
    GRANTS = "grants"
    ADJUSTMENTS = "adjustments"
    REFUNDS = "refunds"
    PRODUCTS = "products"
    ORDERS = "orders"  # pay and cancel
    REWARDS = "rewards"
    PRICE_BOOKS = "price_books"
    RERATING = "rerating"
    STATEMENTS = "statements"
    TOKENS = "tokens"


_ALL: Final = frozenset(Role)
_OPERATION: Final = frozenset({Role.OWNER, Role.OPERATOR})
_MONEY: Final = frozenset({Role.OWNER, Role.FINANCE})

ALLOWED: Final[dict[Permission, frozenset[Role]]] = {
    Permission.READ: _ALL,
    Permission.ACCOUNTS: _OPERATION | _MONEY,
    Permission.SUSPEND: _OPERATION,
    Permission.KEYS: _OPERATION,
    Permission.HOLDS: _OPERATION,
    Permission.QUARANTINE: _OPERATION,
    Permission.GUARD: _OPERATION,
    Permission.RECONCILE: _OPERATION,
    Permission.GRANTS: _MONEY,
    Permission.ADJUSTMENTS: _MONEY,
    Permission.REFUNDS: _MONEY,
    Permission.PRODUCTS: _MONEY,
    Permission.ORDERS: _MONEY,
    Permission.REWARDS: _MONEY,
    Permission.PRICE_BOOKS: _MONEY,
    Permission.RERATING: _MONEY,
    Permission.STATEMENTS: _MONEY,
    Permission.TOKENS: frozenset({Role.OWNER}),
}


def roles_for(permission: Permission) -> tuple[Role, ...]:
    """The roles that have a permission, the most powerful first."""
    return tuple(role for role in Role if role in ALLOWED[permission])


class Admin(msgspec.Struct, frozen=True, kw_only=True):
    """Who acts: the name stands in the audit trail."""

    name: str
    role: Role

    def may(self, permission: Permission) -> bool:
        """Whether the role has a permission."""
        return self.role in ALLOWED[permission]


OWNER: Final = Admin(name=OWNER_NAME, role=Role.OWNER)


class AdminToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token without itself, of which `prefix` is all that is kept."""

    token_id: str
    name: str
    role: Role
    prefix: str
    created_by: str
    created_at: int  # milliseconds since the epoch
    expires_at: int | None
    revoked_at: int | None

    def usable(self, now_ms: int) -> bool:
        """Whether it still opens anything at a time (milliseconds since the epoch)."""
        return self.revoked_at is None and (self.expires_at is None or now_ms < self.expires_at)


class NewAdminToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token to be made. A name is used once, for ever: the audit trail goes by it."""

    name: str
    role: Role
    expires_at: int | None = None  # milliseconds since the epoch


class NameTakenError(Exception):
    """There is, or was, a token by this name."""


class Admins:
    """The administrators of one database, apart from the owner whose token is configured."""

    def __init__(self, database: Database, *, now_ms: Callable[[], int]) -> None:
        self._database = database
        self._now_ms = now_ms

    async def find(self, token: str) -> Admin | None:
        """Whose a token is; None if it is nobody's, expired or revoked.

        Raises DatabaseUnavailableError: then nobody knows.
        """
        if not (len(token) == TOKEN_CHARACTERS and token.startswith(TOKEN_PREFIX)):
            return None
        wanted = select(admin_tokens).where(admin_tokens.c.sha256 == _digest(token))
        try:
            async with self._database.read() as connection:
                row = (await connection.execute(wanted)).one_or_none()
        except (SQLAlchemyError, OSError) as error:
            raise DatabaseUnavailableError from error
        if row is None or not (found := _token(row)).usable(self._now_ms()):
            return None
        return Admin(name=found.name, role=found.role)

    async def create(self, new: NewAdminToken, *, actor: str) -> tuple[AdminToken, str]:
        """Make a token; it is in this answer and nowhere else, ever.

        Raises ValueError (the name), NameTakenError.
        """
        if not _NAME.fullmatch(new.name):
            raise ValueError(NAME_RULE)
        token = TOKEN_PREFIX + base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()
        now_ms = self._now_ms()
        made = AdminToken(
            token_id=f"adm_{os.urandom(8).hex()}",
            name=new.name,
            role=new.role,
            prefix=token[:SHOWN_CHARACTERS],
            created_by=actor,
            created_at=now_ms,
            expires_at=new.expires_at,
            revoked_at=None,
        )
        act = Act(
            actor=actor,
            action="admin_token.create",
            target=made.token_id,
            detail={"name": made.name, "role": made.role.value, "expires_at": made.expires_at},
        )
        async with self._database.write(alone=True) as connection:
            taken = select(admin_tokens.c.id).where(admin_tokens.c.name == new.name)
            if new.name in RESERVED_NAMES or await connection.scalar(taken) is not None:
                raise NameTakenError
            values = msgspec.structs.asdict(made) | {"sha256": _digest(token)}
            values["id"] = values.pop("token_id")
            await connection.execute(insert(admin_tokens).values(**values))
            await note(connection, act, now_ms)
        return made, token

    async def page(self, request: PageRequest) -> Page[AdminToken]:
        """All tokens, newest first; by page number only."""
        table = admin_tokens
        ordered = select(table).order_by(table.c.created_at.desc(), table.c.id.desc())
        return await read_page(self._database, ordered, request, _token)

    async def revoke(self, token_id: str, *, actor: str) -> AdminToken | None:
        """Withdraw a token for good; None if there is none. Once more changes nothing."""
        now_ms = self._now_ms()
        mine = admin_tokens.c.id == token_id
        async with self._database.write() as connection:
            changed = await connection.execute(
                update(admin_tokens)
                .where(mine, admin_tokens.c.revoked_at.is_(None))
                .values(revoked_at=now_ms)
            )
            row = (await connection.execute(select(admin_tokens).where(mine))).one_or_none()
            found = None if row is None else _token(row)
            if changed.rowcount and found is not None:
                act = Act(
                    actor=actor,
                    action="admin_token.revoke",
                    target=token_id,
                    detail={"name": found.name},
                )
                await note(connection, act, now_ms)
        return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _token(row: Row[*tuple[object, ...]]) -> AdminToken:
    return AdminToken(
        token_id=row.id,
        name=row.name,
        role=Role(row.role),
        prefix=row.prefix,
        created_by=row.created_by,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
