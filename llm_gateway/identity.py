"""Who calls, who pays, at which scene's prices: from a call's headers alone. Pure.

In: `Authorization: Bearer lgw_...` (the scheme in any case), `X-Scene`, `X-Billing-User`,
`X-Run-Id`, `X-Request-Id`; and how the answer is to be told: `X-Include-Cost` (true or false). Each
may occur once: a repeated one is 400, because proxies and frameworks disagree about which of two
counts (a repeated X-Request-Id is only not stored). A present but empty header counts as absent.

Azure's `api-key` and Anthropic's `x-api-key` are not read: one place for the credential means that
no two can contradict each other. The 401 says which header to send.

Whether the account is suspended or has credit is judged where the credit is held, not here.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from billing.accounts import ACCOUNT_ID_RULE, is_account_id
from billing.keys import KeyInfo, Keys, Miss
from billing.kinds import KeyKind
from llm_gateway.errors import (
    BillingUserNotAllowedError,
    InvalidApiKeyError,
    InvalidRequestError,
    MissingBillingUserError,
    SceneNotAllowedError,
)

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case

CLIENT_ID_CHARACTERS_MAX: Final = 128  # of X-Request-Id and X-Run-Id


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who makes a call and what for; everything a BillingContext needs of the headers."""

    key: KeyInfo
    account: str
    scene: str
    run_id: str  # "" if none was sent
    client_request_id: str  # the client's own X-Request-Id, "" if none fit to store was sent
    include_cost: bool = False  # the answer is to say what it cost


class CallHeaders(msgspec.Struct, frozen=True, kw_only=True):
    """The headers that say who calls; "" where one is absent."""

    token: str
    scene: str
    billing_user: str
    run_id: str
    client_request_id: str
    include_cost: bool = False


def read_headers(headers: Headers) -> CallHeaders:
    """Pick out and check the headers that need no look at the key.

    Raises InvalidApiKeyError (no usable bearer token) and InvalidRequestError (one of them is
    repeated, X-Run-Id is not fit to store, or X-Include-Cost is neither yes nor no).
    """
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in _NAMES:
            if name not in found:
                found[name] = value
            elif name == b"x-request-id":
                found[name] = b""
            else:
                raise _repeated(name)
    return CallHeaders(
        token=_bearer_token(found.get(b"authorization", b"")),
        scene=_text(found.get(b"x-scene", b"")),
        billing_user=_text(found.get(b"x-billing-user", b"")),
        run_id=_run_id(found.get(b"x-run-id", b"")),
        client_request_id=stored_request_id(found.get(b"x-request-id", b"")),
        include_cost=b"x-include-cost" in found and _is_yes(found[b"x-include-cost"]),
    )


def caller_of(
    key: KeyInfo | None, sent: CallHeaders, now_ms: int, *, needs_account: bool = True
) -> Caller:
    """Judge a key that was looked up, with the headers it came with, at a time (epoch ms).

    Without `needs_account` an app key may leave X-Billing-User out; the account is "" then.

    Raises InvalidApiKeyError (unknown, revoked, expired), BillingUserNotAllowedError,
    MissingBillingUserError, SceneNotAllowedError, InvalidRequestError (account id).
    """
    if key is None or not key.usable(now_ms):
        raise InvalidApiKeyError
    return Caller(
        key=key,
        account=_account(key, sent.billing_user, needs_account=needs_account),
        scene=_scene(key, sent.scene),
        run_id=sent.run_id,
        client_request_id=sent.client_request_id,
        include_cost=sent.include_cost,
    )


def identify_cached(
    headers: Headers, lookup: Callable[[str], KeyInfo | Miss | None], now_ms: int
) -> Caller | Miss:
    """Identify without waiting; MISS if the key must be fetched first. Raises as `identify`."""
    sent = read_headers(headers)
    key = lookup(sent.token)
    if isinstance(key, Miss):
        return key
    return caller_of(key, sent, now_ms)


async def identify(
    headers: Headers, keys: Keys, now_ms: int, *, needs_account: bool = True
) -> Caller:
    """Identify a caller, reading the key from the database if it is not in the cache.

    Raises the errors of `read_headers` and `caller_of`, and billing.keys.DatabaseUnavailableError
    when an unknown key cannot be judged.
    """
    sent = read_headers(headers)
    key = keys.lookup(sent.token)
    if isinstance(key, Miss):
        key = await keys.fetch(sent.token)
    return caller_of(key, sent, now_ms, needs_account=needs_account)


def may_use_model(key: KeyInfo, model: str) -> bool:
    """Whether a key may use a model: it lists none, its name, or a prefix of it and `*`."""
    if not key.models or model in key.models:
        return True
    return any(name.endswith("*") and model.startswith(name[:-1]) for name in key.models)


def stored_request_id(value: bytes) -> str:
    """The client's own request id if it is fit to store: 1 to 128 visible ASCII characters.

    Anything else is ignored, not cut: a cut id could equal another call's. It never fails a call,
    because load balancers and SDKs set this header without being asked.
    """
    return value.decode("ascii") if _is_visible_ascii(value) else ""


_NAMES: Final = frozenset(
    {
        b"authorization",
        b"x-scene",
        b"x-billing-user",
        b"x-run-id",
        b"x-request-id",
        b"x-include-cost",
    }
)
_DISPLAY_NAMES: Final = {
    b"authorization": "Authorization",
    b"x-scene": "X-Scene",
    b"x-billing-user": "X-Billing-User",
    b"x-run-id": "X-Run-Id",
    b"x-include-cost": "X-Include-Cost",
}
_YES_OR_NO: Final = {b"true": True, b"1": True, b"false": False, b"0": False, b"": False}


def bearer_value(value: bytes) -> str:
    """What follows `Bearer ` (any case, RFC 9110, 11.1); "" if it is something else."""
    scheme, _, token = value.partition(b" ")
    if scheme.lower() != b"bearer":
        return ""
    return token.strip(b" ").decode("latin-1")


def _bearer_token(value: bytes) -> str:
    token = bearer_value(value)
    if not token:
        raise InvalidApiKeyError("Send an API key in the header `Authorization: Bearer lgw_...`.")
    return token


def _account(key: KeyInfo, billing_user: str, *, needs_account: bool) -> str:
    if key.kind is KeyKind.USER:
        if billing_user:
            raise BillingUserNotAllowedError(
                "This key bills its own account: only an app's key may send X-Billing-User."
            )
        return key.account
    if not billing_user:
        if needs_account:
            raise MissingBillingUserError
        return ""
    if not is_account_id(billing_user):
        raise InvalidRequestError(
            f"X-Billing-User is not an account id: {ACCOUNT_ID_RULE}.", param="X-Billing-User"
        )
    if key.accounts and billing_user not in key.accounts:
        raise BillingUserNotAllowedError
    return billing_user


def _scene(key: KeyInfo, scene: str) -> str:
    if not scene:
        return key.default_scene
    if scene != key.default_scene and scene not in key.scenes:
        raise SceneNotAllowedError(scene)
    return scene


def _run_id(value: bytes) -> str:
    # Unlike a request id it groups the calls of a run, so a wrong one must not vanish unnoticed.
    if value and not _is_visible_ascii(value):
        raise InvalidRequestError(
            f"X-Run-Id must be 1 to {CLIENT_ID_CHARACTERS_MAX} visible ASCII characters.",
            param="X-Run-Id",
        )
    return value.decode("ascii")


def _is_yes(value: bytes) -> bool:
    # Whoever writes "yes" wants something, and would look for it in vain.
    if (meant := _YES_OR_NO.get(value.strip().lower())) is None:
        raise InvalidRequestError("X-Include-Cost must be true or false.", param="X-Include-Cost")
    return meant


def _is_visible_ascii(value: bytes) -> bool:
    # In ASCII, printable and free of spaces is what RFC 9110 calls VCHAR.
    return (
        0 < len(value) <= CLIENT_ID_CHARACTERS_MAX
        and value.isascii()
        and b" " not in value
        and value.decode("ascii").isprintable()
    )


def _text(value: bytes) -> str:
    return value.decode("latin-1")


def _repeated(name: bytes) -> InvalidRequestError:
    shown = _DISPLAY_NAMES[name]
    return InvalidRequestError(f"The header {shown} was sent more than once.", param=shown)
