"""Who calls and who pays: every combination of key and headers, and the error each wrong one gets."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.keys import MISS, KeyInfo, Miss
from billing.kinds import KeyKind
from llm_gateway.errors import (
    BillingUserNotAllowedError,
    GatewayError,
    InvalidApiKeyError,
    InvalidRequestError,
    MissingBillingUserError,
    SceneNotAllowedError,
)
from llm_gateway.identity import (
    Caller,
    caller_of,
    identify_cached,
    may_use_model,
    read_headers,
    stored_request_id,
)

NOW = 1_790_000_000_000
TOKEN = "lgw_" + "t" * 43

USER = KeyInfo(
    key_id="key_1",
    kind=KeyKind.USER,
    prefix="lgw_tttttt",
    account="ada",
    app="",
    accounts=(),
    default_scene="chat",
    scenes=("agent",),
    models=(),
    description="",
    created_at=NOW,
    expires_at=None,
    revoked_at=None,
)
APP = msgspec.structs.replace(USER, kind=KeyKind.APP, account="", app="forum")
FENCED_APP = msgspec.structs.replace(APP, accounts=("ada", "bob"))


def _identify(key: KeyInfo | None, *headers: tuple[bytes, bytes]) -> Caller:
    sent = [(b"host", b"gw"), (b"authorization", b"Bearer " + TOKEN.encode()), *headers]
    caller = identify_cached(sent, lambda token: key if token == TOKEN else None, NOW)
    assert isinstance(caller, Caller)
    return caller


def test_user_key_bills_its_account() -> None:
    assert _identify(USER) == Caller(
        key=USER, account="ada", scene="chat", run_id="", client_request_id=""
    )


def test_app_key_bills_the_account_it_names() -> None:
    caller = _identify(APP, (b"x-billing-user", b"auth0|65f"))
    assert (caller.account, caller.key.app) == ("auth0|65f", "forum")


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"bEaReR"])
def test_scheme_is_read_in_any_case(scheme: bytes) -> None:
    assert read_headers([(b"authorization", scheme + b"  " + TOKEN.encode())]).token == TOKEN


@pytest.mark.parametrize(
    "value",
    [b"", b" ", b"Bearer", b"Bearer ", b"Bearer   ", b"Basic abc", TOKEN.encode(), b"Bearer\tabc"],
)
def test_missing_or_odd_credentials_are_401(value: bytes) -> None:
    with pytest.raises(InvalidApiKeyError):
        read_headers([(b"authorization", value)])


@pytest.mark.parametrize("name", [b"api-key", b"x-api-key", b"x-goog-api-key"])
def test_no_other_header_carries_a_key(name: bytes) -> None:
    with pytest.raises(InvalidApiKeyError, match="Authorization: Bearer"):
        read_headers([(name, TOKEN.encode())])


def test_unknown_key_is_401() -> None:
    with pytest.raises(InvalidApiKeyError) as error:
        _identify(None)
    assert TOKEN not in str(error.value)
    assert TOKEN.encode() not in error.value.envelope()


@pytest.mark.parametrize(
    "changed", [{"revoked_at": NOW - 1}, {"expires_at": NOW}, {"expires_at": NOW - 1}]
)
def test_revoked_or_expired_key_is_401(changed: dict[str, int]) -> None:
    with pytest.raises(InvalidApiKeyError):
        _identify(msgspec.structs.replace(USER, **changed))


def test_key_works_until_it_expires() -> None:
    assert _identify(msgspec.structs.replace(USER, expires_at=NOW + 1)).account == "ada"


@pytest.mark.parametrize("named", [b"ada", b"bob"])
def test_user_key_may_name_nobody(named: bytes) -> None:
    with pytest.raises(BillingUserNotAllowedError) as error:
        _identify(USER, (b"x-billing-user", named))
    assert error.value.status == 403


@pytest.mark.parametrize("headers", [(), ((b"x-billing-user", b""),)])
def test_app_key_must_name_somebody(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    with pytest.raises(MissingBillingUserError) as error:
        _identify(APP, *headers)
    assert error.value.status == 400


@pytest.mark.parametrize(
    "named", [b"a b", b"a" * 65, b"a/b", b"..", b"a\xe9", b"a\x00", b"a,b", b"-a"]
)
def test_account_outside_the_alphabet_is_400(named: bytes) -> None:
    with pytest.raises(InvalidRequestError) as error:
        _identify(APP, (b"x-billing-user", named))
    assert error.value.param == "X-Billing-User"


def test_app_key_stays_within_its_accounts() -> None:
    assert _identify(FENCED_APP, (b"x-billing-user", b"bob")).account == "bob"
    for other in (b"eve", b"Bob", b"bob2"):
        with pytest.raises(BillingUserNotAllowedError):
            _identify(FENCED_APP, (b"x-billing-user", other))


def test_what_concerns_no_account_needs_none() -> None:
    sent = read_headers([(b"authorization", b"Bearer " + TOKEN.encode())])
    assert caller_of(APP, sent, NOW, needs_account=False).account == ""
    assert caller_of(USER, sent, NOW, needs_account=False).account == "ada"


@pytest.mark.parametrize(("sent", "scene"), [(b"", "chat"), (b"chat", "chat"), (b"agent", "agent")])
def test_scene_is_one_of_the_keys(sent: bytes, scene: str) -> None:
    assert _identify(USER, (b"x-scene", sent)).scene == scene


@pytest.mark.parametrize("sent", [b"batch", b"Agent", b"*", b"agent,chat", b"\xff"])
def test_other_scenes_are_403(sent: bytes) -> None:
    with pytest.raises(SceneNotAllowedError) as error:
        _identify(USER, (b"x-scene", sent))
    assert error.value.status == 403


@pytest.mark.parametrize("name", [b"authorization", b"x-billing-user", b"x-scene", b"x-run-id"])
def test_repeated_header_is_400(name: bytes) -> None:
    value = b"Bearer " + TOKEN.encode() if name == b"authorization" else b"ada"
    headers = [(name, value), (name, value), (b"authorization", b"Bearer " + TOKEN.encode())]
    with pytest.raises(InvalidRequestError, match="more than once"):
        read_headers(headers)


def test_repeated_request_id_is_not_stored() -> None:
    assert _identify(USER, (b"x-request-id", b"a"), (b"x-request-id", b"b")).client_request_id == ""


@pytest.mark.parametrize("sent", [b"a", b"req-1:2/3", b"!~", b"x" * 128])
def test_visible_request_id_is_stored(sent: bytes) -> None:
    caller = _identify(USER, (b"x-request-id", sent), (b"x-run-id", sent))
    assert caller.client_request_id == caller.run_id == sent.decode()


@pytest.mark.parametrize("sent", [b"", b"x" * 129, b"a b", b"a\tb", b"\x7f", b"\xc3\xa9", b"a\x00"])
def test_other_request_id_is_ignored(sent: bytes) -> None:
    assert _identify(USER, (b"x-request-id", sent)).client_request_id == ""


@pytest.mark.parametrize("sent", [b"x" * 129, b"a b", b"\x7f", b"\xc3\xa9"])
def test_other_run_id_is_400(sent: bytes) -> None:
    with pytest.raises(InvalidRequestError) as error:
        _identify(USER, (b"x-run-id", sent))
    assert error.value.param == "X-Run-Id"


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [
        (b"true", True),
        (b"True", True),
        (b"1", True),
        (b"false", False),
        (b"0", False),
        (b"", False),
    ],
)
def test_cost_is_told_to_who_asks(sent: bytes, wanted: bool) -> None:
    assert _identify(USER, (b"x-include-cost", sent)).include_cost is wanted


@pytest.mark.parametrize("sent", [b"yes", b"2", b"true,true", b"t", b"\xff", b"null"])
def test_another_wish_for_the_cost_is_400(sent: bytes) -> None:
    with pytest.raises(InvalidRequestError) as error:
        _identify(USER, (b"x-include-cost", sent))
    assert error.value.param == "X-Include-Cost"


def test_key_that_is_not_cached_is_a_miss() -> None:
    headers = [(b"authorization", b"Bearer " + TOKEN.encode())]
    assert identify_cached(headers, lambda _: MISS, NOW) is MISS


@pytest.mark.parametrize(
    ("models", "model", "allowed"),
    [
        ((), "anything", True),
        (("mini",), "mini", True),
        (("mini",), "mini-2", False),
        (("gpt-4*",), "gpt-4o", True),
        (("gpt-4*",), "gpt-3", False),
        (("*",), "x", True),
        (("g*4",), "g-4", False),
        (("mini",), "MINI", False),
        (("mini",), "", False),
    ],
)
def test_models_of_a_key(models: tuple[str, ...], model: str, allowed: bool) -> None:
    assert may_use_model(msgspec.structs.replace(USER, models=models), model) is allowed


@given(st.binary(max_size=200))
def test_stored_request_id_is_always_visible_ascii(value: bytes) -> None:
    stored = stored_request_id(value)
    assert len(stored) <= 128
    assert all("!" <= character <= "~" for character in stored)
    assert stored in ("", value.decode("latin-1"))


@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [
                    b"authorization",
                    b"x-scene",
                    b"x-billing-user",
                    b"x-run-id",
                    b"x-request-id",
                    b"x-include-cost",
                ]
            ),
            st.binary(max_size=80)
            | st.sampled_from([b"Bearer " + TOKEN.encode(), b"ada", b"agent"]),
        ),
        max_size=6,
    ),
    st.sampled_from([USER, APP, FENCED_APP]),
)
def test_any_headers_give_a_caller_or_an_error_of_ours(
    headers: list[tuple[bytes, bytes]], key: KeyInfo
) -> None:
    """And whoever gets through pays from an account of the key, at a scene of the key."""
    caller: Caller | Miss | None = None
    status = 0
    try:
        caller = identify_cached(headers, lambda token: key if token == TOKEN else None, NOW)
    except GatewayError as error:
        status = error.status
    if caller is None:
        assert status in (400, 401, 403)
        return
    assert isinstance(caller, Caller)
    assert caller.scene in ("chat", "agent")
    assert caller.account == "ada" if key is USER else caller.account
    assert key is not FENCED_APP or caller.account in FENCED_APP.accounts
