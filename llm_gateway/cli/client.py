"""The command line's HTTP client: where the gateway is, who asks, and in one line what went wrong."""

import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import quote, urlsplit

import httpx2
import msgspec
import rich_click as click

from llm_gateway.cli.failure import REFUSED, CommandError
from llm_gateway.config import is_loopback
from llm_gateway.credentials import Credentials, CredentialsError, read_credentials

DEFAULT_URL: Final = "http://127.0.0.1:8080"
CONNECT_SECONDS: Final = 5.0
ANSWER_SECONDS: Final = 60.0
OK: Final = 200
ERROR_CHARACTERS_MAX: Final = 2_000  # of a server's message

T = TypeVar("T")


class _Error(msgspec.Struct):
    message: str = ""


class _ErrorAnswer(msgspec.Struct):
    error: _Error


class Client:
    """Speaks to one gateway with one token; every failure is a CommandError."""

    def __init__(self, url: str, token: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = checked_url(url)
        checked_header("the token", token)
        self._http = httpx2.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}", **(headers or {})},
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=trust_env(self.url),
        )

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def get(self, path: str, kind: type[T], /, **query: str | int | None) -> T:
        """GET; what is None is not sent."""
        params = {name: value for name, value in query.items() if value is not None}
        return _decoded(self._answer("GET", path, params=params), kind)

    def post(self, path: str, kind: type[T], body: object = None, *, key: str | None = None) -> T:
        """POST of JSON; `key`: the Idempotency-Key."""
        content = msgspec.json.encode({} if body is None else body)
        headers = {"Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = checked_header("the idempotency key", key)
        return _decoded(self._answer("POST", path, content=content, headers=headers), kind)

    def patch(self, path: str, kind: type[T], body: object) -> T:
        """PATCH of JSON."""
        content = msgspec.json.encode(body)
        headers = {"Content-Type": "application/json"}
        return _decoded(self._answer("PATCH", path, content=content, headers=headers), kind)

    def post_toml(self, path: str, kind: type[T], text: bytes) -> T:
        """POST of a TOML text."""
        headers = {"Content-Type": "application/toml"}
        answer = self._answer("POST", path, content=text, headers=headers)
        return _decoded(answer, kind)

    def lines(
        self,
        method: str,
        path: str,
        query: Mapping[str, str | int | None],
        *,
        content: bytes | None = None,
        content_type: str = "application/json",
    ) -> Iterator[bytes]:
        """An answer line by line, as it comes."""
        params = {name: value for name, value in query.items() if value is not None}
        headers = {} if content is None else {"Content-Type": content_type}
        asked = self._http.stream(method, path, params=params, content=content, headers=headers)
        try:
            with asked as response:
                if not _fine(response):
                    response.read()
                    raise CommandError(_refusal(response), REFUSED)
                for line in response.iter_lines():
                    yield line.encode()
        except httpx2.HTTPError as error:
            raise CommandError(unreachable(self.url, error)) from error

    def get_text(self, path: str) -> str:
        """GET of a text."""
        return self._answer("GET", path).content.decode()

    def try_get(self, path: str, kind: type[T]) -> T | None:
        """GET; None if there is no such thing there, or the server is no gateway."""
        response = self._send("GET", path)
        try:
            return msgspec.json.decode(response.content, type=kind) if _fine(response) else None
        except msgspec.DecodeError:
            return None

    def _answer(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        response = self._send(method, path, params=params, content=content, headers=headers)
        if not _fine(response):
            raise CommandError(_refusal(response), REFUSED)
        return response

    def _send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str | int] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        try:
            return self._http.request(method, path, params=params, content=content, headers=headers)
        except httpx2.HTTPError as error:
            raise CommandError(unreachable(self.url, error)) from error


def unreachable(url: str, error: Exception) -> str:
    """Why a server did not answer, as one line."""
    if isinstance(error, httpx2.TimeoutException):
        return f"{url} does not answer in time"
    why = str(error) or type(error).__name__
    return f"{url} cannot be reached ({why}): is the gateway running?"


def checked_url(url: str) -> str:
    """An address without its last slash; raises CommandError if it is none."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise CommandError(f'"{url}" is no address: expected "http://host:port"')
    return url.rstrip("/")


def checked_header(name: str, value: str) -> str:
    """A value fit for a header; the message does not repeat it."""
    if not value.isascii() or not value.isprintable():
        raise CommandError(f"{name} holds a character that cannot be sent")
    return value


def trust_env(url: str) -> bool:
    """Whether HTTP_PROXY and the like apply: no proxy leads to this machine itself."""
    return not is_loopback(urlsplit(url).hostname or "")


def segment(name: str) -> str:
    """A name as one segment of a path."""
    return quote(name, safe="")


def stored_credentials(data_dir: str) -> Credentials:
    """What the gateway left in its data directory; empty if there is nothing."""
    try:
        return read_credentials(Path(data_dir)) or Credentials()
    except CredentialsError as error:
        raise CommandError(str(error)) from error


def _fine(response: httpx2.Response) -> bool:
    return OK <= response.status_code < 300


def _refusal(response: httpx2.Response) -> str:
    try:
        message = msgspec.json.decode(response.content, type=_ErrorAnswer).error.message
    except msgspec.DecodeError:
        message = ""
    text = message[:ERROR_CHARACTERS_MAX] or f"the answer of {response.url} is no gateway's"
    return f"{text} (HTTP {response.status_code})"


def _decoded(response: httpx2.Response, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(response.content, type=kind)
    except msgspec.DecodeError as error:
        message = f"{response.url} answered something that is not understood: {error}"
        raise CommandError(message) from error


# -- options that many commands have ---------------------------------------------------------

data_dir_option = click.option(
    "--data-dir",
    envvar="LLM_GATEWAY_DATA_DIR",
    default=".data",
    show_default=True,
    metavar="DIR",
    help="Where the gateway keeps its credentials.",
)
url_option = click.option(
    "--url",
    envvar="LLM_GATEWAY_URL",
    metavar="URL",
    help="The gateway's address. Default: the one in the credentials.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")


def admin_command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that lead to the admin API, and a client for it."""

    @url_option
    @click.option(
        "--admin-token",
        envvar="GATEWAY_ADMIN_TOKEN",
        metavar="TOKEN",
        help="Default: the one in the credentials.",
    )
    @data_dir_option
    @functools.wraps(function)
    def with_client(
        url: str | None, admin_token: str | None, data_dir: str, **options: object
    ) -> None:
        stored = stored_credentials(data_dir)
        # A stored token is for the stored gateway: it is not shown to any other address.
        home = stored.admin_url or stored.url or DEFAULT_URL
        token = admin_token or (stored.admin_token if not url or same(url, home) else "")
        if not token:
            message = f"no admin token: give --admin-token, or --data-dir (tried {data_dir})"
            raise CommandError(message)
        client = Client(url or home, token)
        try:
            function(client, **options)
        finally:
            client.close()

    return with_client


def user_command(function: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that lead to the credit store, and a client for it."""

    @url_option
    @click.option(
        "--key", envvar="LLM_GATEWAY_KEY", metavar="KEY", help="Default: the demo account's."
    )
    @click.option("--account", metavar="ID", help="Whose account, if the key is an app's.")
    @data_dir_option
    @functools.wraps(function)
    def with_client(
        url: str | None, key: str | None, account: str | None, data_dir: str, **options: object
    ) -> None:
        stored = stored_credentials(data_dir)
        home = stored.url or DEFAULT_URL
        token = key or (stored.demo_key if not url or same(url, home) else "")
        if not token:
            raise CommandError(f"no key: give --key, or --data-dir (tried {data_dir})")
        headers = {"X-Billing-User": checked_header("the account", account)} if account else None
        client = Client(url or home, token, headers)
        try:
            function(client, **options)
        finally:
            client.close()

    return with_client


def same(url: str, other: str) -> bool:
    """Whether two addresses lead to the same server."""
    one, two = urlsplit(checked_url(url)), urlsplit(checked_url(other))
    return (one.scheme, one.hostname, one.port) == (two.scheme, two.hostname, two.port)
