"""API keys: made, listed and revoked here; looked up, without waiting, by every call.

A token is `lgw_` and 256 random bits in URL-safe base64. It is shown once: the database holds its
SHA-256, which needs neither salt nor slow hashing, as there is nothing to guess 256 random bits by;
and since look-up is by that digest, comparison time tells nothing about a stored token.
"""

import asyncio
import base64
import hashlib
import os
from collections.abc import Callable
from enum import Enum
from typing import Final

import msgspec
from sqlalchemy import insert, select, update
from sqlalchemy.engine import Row
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.audit import Act, Detail, note
from billing.db.hot import DatabaseUnavailableError
from billing.db.pages import read_page
from billing.db.session import Database
from billing.db.tables import api_keys
from billing.kinds import KeyKind
from billing.lists import Page, PageRequest

TOKEN_PREFIX: Final = "lgw_"  # noqa: S105 - what every token begins with, no secret
TOKEN_CHARACTERS: Final = len(TOKEN_PREFIX) + 43  # 32 bytes in base64 without padding
SHOWN_CHARACTERS: Final = 10  # "lgw_" and 36 of the 256 bits
CACHE_SECONDS_MAX: Final = 1.0
CACHED_KEYS_MAX: Final = 20_000
_COLUMN_OF: Final = {"description": "note"}
READ_TOGETHER_MAX: Final = 500  # SQLite before 3.32 takes at most 999 parameters


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a key may do; everything about it except the token."""

    key_id: str
    kind: KeyKind
    prefix: str  # the token's first characters, to tell keys apart
    account: str  # a user key's account; "" for an app key
    app: str  # an app key's service; "" for a user key
    accounts: tuple[str, ...]  # the accounts that an app key may bill; () = any
    default_scene: str
    scenes: tuple[str, ...]  # further scenes that X-Scene may choose
    models: tuple[str, ...]  # names, or prefixes ending in "*"; () = any
    description: str
    created_at: int  # milliseconds since the epoch
    expires_at: int | None
    revoked_at: int | None
    requests_per_minute: int | None = None  # None: no limit; so are the next two
    tokens_per_minute: int | None = None
    concurrent_calls: int | None = None
    replaced_by: str | None = (
        None  # the key that a rotation made; this one is good until it expires
    )

    @property
    def revoked(self) -> bool:
        """Whether an admin withdrew the key."""
        return self.revoked_at is not None

    @property
    def has_limits(self) -> bool:
        """Whether its calls are counted at all."""
        return (
            self.requests_per_minute is not None
            or self.tokens_per_minute is not None
            or self.concurrent_calls is not None
        )

    def usable(self, now_ms: int) -> bool:
        """Whether the key still opens anything at a time (milliseconds since the epoch)."""
        return self.revoked_at is None and (self.expires_at is None or now_ms < self.expires_at)


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """What an admin decides about a key before it is made."""

    kind: KeyKind
    account: str = ""
    app: str = ""
    accounts: tuple[str, ...] = ()
    default_scene: str
    scenes: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    description: str = ""
    expires_at: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_calls: int | None = None


class KeyChange(msgspec.Struct, frozen=True, kw_only=True):
    """What to change of a key; what is unset stays. A limit of None is no limit, nor is there an end."""

    default_scene: str | msgspec.UnsetType = msgspec.UNSET
    scenes: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    models: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType = msgspec.UNSET
    expires_at: int | msgspec.UnsetType | None = msgspec.UNSET
    requests_per_minute: int | msgspec.UnsetType | None = msgspec.UNSET
    tokens_per_minute: int | msgspec.UnsetType | None = msgspec.UNSET
    concurrent_calls: int | msgspec.UnsetType | None = msgspec.UNSET


class UnknownKeyError(Exception):
    """There is no key by this id."""


class KeyOutOfUseError(Exception):
    """The key is revoked, expired or replaced: nothing can be done with it any more."""


class Miss(Enum):
    """The answer of a look-up that needs the database first."""

    MISS = "miss"


MISS: Final = Miss.MISS


class Keys:
    """The keys of one gateway, each cached for a second, and while the database is away for longer.

    A revocation by another process is seen within that second; one by this process at once.
    """

    def __init__(
        self, database: Database, *, now_ms: Callable[[], int], monotonic: Callable[[], float]
    ) -> None:
        self._database = database
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._cache: dict[str, tuple[KeyInfo | None, float]] = {}  # digest -> key, read at
        self._wanted: set[str] = set()
        self._reading = asyncio.Lock()

    def lookup(self, token: str) -> KeyInfo | Miss | None:
        """The token's key if it was read within the last second, None if there is none, or MISS.

        The key may be revoked or expired: see KeyInfo.usable.
        """
        cached = self._cache.get(_digest(token))
        if cached is not None and self._monotonic() - cached[1] < CACHE_SECONDS_MAX:
            return cached[0]
        return MISS if _looks_like_token(token) else None

    async def fetch(self, token: str) -> KeyInfo | None:
        """The token's key, read from the database unless it is cached; None if there is none.

        One query serves all calls that wait, and renews the keys that are in use. Raises
        DatabaseUnavailableError if the database is away and the key was not read before.
        """
        found = self.lookup(token)
        if not isinstance(found, Miss):
            return found
        digest = _digest(token)
        self._wanted.add(digest)
        async with self._reading:
            # Whoever held the lock before may have read this key along with its own.
            while digest in self._wanted:
                await self._read()
        cached = self._cache.get(digest)
        if cached is None:
            raise DatabaseUnavailableError
        return cached[0]

    async def create(self, new: NewKey, *, actor: str) -> tuple[KeyInfo, str]:
        """Make a key; its token is in this answer and nowhere else, ever."""
        token = _new_token()
        now_ms = self._now_ms()
        info = KeyInfo(
            key_id=_new_id(),
            prefix=token[:SHOWN_CHARACTERS],
            created_at=now_ms,
            revoked_at=None,
            **{name: getattr(new, name) for name in NewKey.__struct_fields__},
        )
        act = Act(
            actor=actor,
            action="key.create",
            target=info.key_id,
            detail={"kind": info.kind.value, "account": info.account, "app": info.app},
        )
        async with self._database.write() as connection:
            await connection.execute(insert(api_keys).values(**_columns(info, _digest(token))))
            await note(connection, act, now_ms)
        return info, token

    async def create_user(
        self, account: str, *, default_scene: str, actor: str, description: str = ""
    ) -> tuple[KeyInfo, str]:
        """Make a key that spends the credit of one account."""
        new = NewKey(
            kind=KeyKind.USER,
            account=account,
            default_scene=default_scene,
            description=description,
        )
        return await self.create(new, actor=actor)

    async def create_app(
        self,
        app: str,
        *,
        default_scene: str,
        actor: str,
        accounts: tuple[str, ...] = (),
        description: str = "",
    ) -> tuple[KeyInfo, str]:
        """Make a key for an internal service, which names the paying account in X-Billing-User."""
        new = NewKey(
            kind=KeyKind.APP,
            app=app,
            accounts=accounts,
            default_scene=default_scene,
            description=description,
        )
        return await self.create(new, actor=actor)

    async def get(self, key_id: str) -> KeyInfo | None:
        """One key by its id."""
        async with self._database.read() as connection:
            row = (
                await connection.execute(select(api_keys).where(api_keys.c.id == key_id))
            ).one_or_none()
        return None if row is None else _info(row)

    async def page(self, request: PageRequest, *, account: str = "") -> Page[KeyInfo]:
        """All keys, newest first, or those of one account; by page number only."""
        wanted = select(api_keys)
        if account:
            wanted = wanted.where(api_keys.c.account == account)
        ordered = wanted.order_by(api_keys.c.created_at.desc(), api_keys.c.id.desc())
        return await read_page(self._database, ordered, request, _info)

    async def revoke(self, key_id: str, *, actor: str) -> KeyInfo | None:
        """Withdraw a key for good; None if there is none. Once more changes nothing."""
        now_ms = self._now_ms()
        async with self._database.write() as connection:
            changed = await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
                .values(revoked_at=now_ms)
            )
            if changed.rowcount:
                await note(connection, Act(actor=actor, action="key.revoke", target=key_id), now_ms)
        self._forget(key_id)
        return await self.get(key_id)

    async def update(self, key_id: str, change: KeyChange, *, actor: str) -> KeyInfo:
        """Change what a key may do; other processes go by it within a second.

        Raises UnknownKeyError, KeyOutOfUseError.
        """
        changed = {
            name: value
            for name, value in msgspec.structs.asdict(change).items()
            if value is not msgspec.UNSET
        }
        now_ms = self._now_ms()
        async with self._database.write(alone=True) as connection:
            after = msgspec.structs.replace(await _in_use(connection, key_id, now_ms), **changed)
            columns = _columns(after, "")
            if changed:
                names = {_COLUMN_OF.get(name, name) for name in changed}
                await connection.execute(
                    update(api_keys)
                    .where(api_keys.c.id == key_id)
                    .values(**{name: columns[name] for name in names})
                )
            detail: Detail = {
                name: ", ".join(value) if isinstance(value, tuple) else value
                for name, value in changed.items()
            }
            act = Act(actor=actor, action="key.update", target=key_id, detail=detail)
            await note(connection, act, now_ms)
        self._forget(key_id)
        return after

    async def rotate(
        self, key_id: str, *, grace_seconds: int, actor: str
    ) -> tuple[KeyInfo, KeyInfo, str]:
        """Make a key in the place of another: the old one, the new one, and its token.

        The old key is good for the grace, 0 for not at all; not longer than it would have been.
        Limits count for each of the two. Raises UnknownKeyError, KeyOutOfUseError.
        """
        token = _new_token()
        now_ms = self._now_ms()
        async with self._database.write(alone=True) as connection:
            old = await _in_use(connection, key_id, now_ms)
            new = msgspec.structs.replace(
                old, key_id=_new_id(), prefix=token[:SHOWN_CHARACTERS], created_at=now_ms
            )
            ends = now_ms + grace_seconds * 1000
            until = ends if old.expires_at is None else min(ends, old.expires_at)
            old = msgspec.structs.replace(old, replaced_by=new.key_id, expires_at=until)
            await connection.execute(insert(api_keys).values(**_columns(new, _digest(token))))
            await connection.execute(
                update(api_keys)
                .where(api_keys.c.id == key_id)
                .values(replaced_by=new.key_id, expires_at=until)
            )
            act = Act(
                actor=actor,
                action="key.rotate",
                target=key_id,
                detail={"replaced_by": new.key_id, "grace_seconds": grace_seconds},
            )
            await note(connection, act, now_ms)
        self._forget(key_id)
        return old, new, token

    async def _read(self) -> None:
        """Read what calls wait for and, in the same query, keys that were cached 0.5 s ago."""
        started = self._monotonic()
        digests = self._to_read(started)
        try:
            async with self._database.read() as connection:
                rows = (
                    await connection.execute(select(api_keys).where(api_keys.c.sha256.in_(digests)))
                ).all()
        except (SQLAlchemyError, OSError):
            self._keep(digests)
            return
        found = {str(row.sha256): _info(row) for row in rows}
        for digest in digests:
            # Re-inserted, so that the oldest are first when the cache is full. Stamped with the
            # time before the query: a revocation committed during it is seen a second later.
            self._cache.pop(digest, None)
            self._cache[digest] = (found.get(digest), started)
        while len(self._cache) > CACHED_KEYS_MAX:
            del self._cache[next(iter(self._cache))]

    def _to_read(self, now: float) -> list[str]:
        wanted = list(self._wanted)[:READ_TOGETHER_MAX]
        self._wanted.difference_update(wanted)
        half = CACHE_SECONDS_MAX / 2
        for digest, (key, read_at) in self._cache.items():
            if len(wanted) >= READ_TOGETHER_MAX:
                break
            if key is not None and now - read_at > half and digest not in wanted:
                wanted.append(digest)
        return wanted

    def _keep(self, digests: list[str]) -> None:
        """Let keys that were good stay good for another second; what was unknown stays unknown."""
        now = self._monotonic()
        for digest in digests:
            key, _ = self._cache.pop(digest, (None, 0.0))
            if key is not None:
                self._cache[digest] = (key, now)

    def _forget(self, key_id: str) -> None:
        for digest, (key, _) in list(self._cache.items()):
            if key is not None and key.key_id == key_id:
                del self._cache[digest]


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _new_token() -> str:
    return TOKEN_PREFIX + base64.urlsafe_b64encode(os.urandom(32)).rstrip(b"=").decode()


def _new_id() -> str:
    return f"key_{os.urandom(8).hex()}"


async def _in_use(connection: AsyncConnection, key_id: str, now_ms: int) -> KeyInfo:
    """A key that can be changed; raises UnknownKeyError, KeyOutOfUseError."""
    row = (await connection.execute(select(api_keys).where(api_keys.c.id == key_id))).one_or_none()
    if row is None:
        raise UnknownKeyError
    key = _info(row)
    if not key.usable(now_ms) or key.replaced_by is not None:
        raise KeyOutOfUseError
    return key


def _looks_like_token(token: str) -> bool:
    """Whether to ask the database at all: noise costs no query."""
    return len(token) == TOKEN_CHARACTERS and token.startswith(TOKEN_PREFIX)


def _columns(info: KeyInfo, digest: str) -> dict[str, str | int | None]:
    return {
        "id": info.key_id,
        "sha256": digest,
        "kind": info.kind.value,
        "prefix": info.prefix,
        "account": info.account or None,
        "app": info.app,
        "accounts": _encode(info.accounts),
        "default_scene": info.default_scene,
        "scenes": _encode(info.scenes),
        "models": _encode(info.models),
        "note": info.description,
        "created_at": info.created_at,
        "expires_at": info.expires_at,
        "revoked_at": info.revoked_at,
        "requests_per_minute": info.requests_per_minute,
        "tokens_per_minute": info.tokens_per_minute,
        "concurrent_calls": info.concurrent_calls,
        "replaced_by": info.replaced_by,
    }


def _info(row: Row[*tuple[object, ...]]) -> KeyInfo:
    return KeyInfo(
        key_id=row.id,
        kind=KeyKind(row.kind),
        prefix=row.prefix,
        account=row.account or "",
        app=row.app,
        accounts=_decode(row.accounts),
        default_scene=row.default_scene,
        scenes=_decode(row.scenes),
        models=_decode(row.models),
        description=row.note,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        requests_per_minute=row.requests_per_minute,
        tokens_per_minute=row.tokens_per_minute,
        concurrent_calls=row.concurrent_calls,
        replaced_by=row.replaced_by,
    )


def _encode(names: tuple[str, ...]) -> str:
    return msgspec.json.encode(names).decode()


def _decode(text: str | None) -> tuple[str, ...]:
    return () if text is None else msgspec.json.decode(text, type=tuple[str, ...])
