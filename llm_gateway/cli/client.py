"""How commands come to a client: which gateway, whose key or token, and in one line what went wrong."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import rich_click as click

from llm_gateway.cli.failure import REFUSED, UNUSABLE, CommandError
from llm_gateway.client import (
    AdminClient,
    GatewayClient,
    GatewayClientError,
    RefusedError,
    Retries,
    UnreadableAnswerError,
)
from llm_gateway.client.transport import checked_url
from llm_gateway.credentials import Credentials, CredentialsError, read_credentials

DEFAULT_URL: Final = "http://127.0.0.1:8080"
ONCE: Final = Retries(attempts_max=1)  # whoever sits before a terminal tries again himself


@contextmanager
def failures_told() -> Iterator[None]:
    """Turn what a client raises into one line and an exit status."""
    try:
        yield
    except RefusedError as error:
        raise CommandError(f"{error} (HTTP {error.status})", REFUSED) from error
    except UnreadableAnswerError as error:
        raise CommandError(str(error), REFUSED) from error
    except GatewayClientError as error:
        raise CommandError(str(error), UNUSABLE) from error


def stored_credentials(data_dir: str) -> Credentials:
    """What the gateway left in its data directory; empty if there is nothing."""
    try:
        return read_credentials(Path(data_dir)) or Credentials()
    except CredentialsError as error:
        raise CommandError(str(error)) from error


def same(url: str, other: str) -> bool:
    """Whether two addresses lead to the same server; raises UnusableArgumentError."""
    one, two = urlsplit(checked_url(url)), urlsplit(checked_url(other))
    return (one.scheme, one.hostname, one.port) == (two.scheme, two.hostname, two.port)


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
        with failures_told():
            token = admin_token or (stored.admin_token if not url or same(url, home) else "")
            if not token:
                message = f"no admin token: give --admin-token, or --data-dir (tried {data_dir})"
                raise CommandError(message)
            with AdminClient(url or home, token, retries=ONCE) as client:
                function(client, **options)

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
        with failures_told():
            token = key or (stored.demo_key if not url or same(url, home) else "")
            if not token:
                raise CommandError(f"no key: give --key, or --data-dir (tried {data_dir})")
            with GatewayClient(url or home, token, account=account or "", retries=ONCE) as client:
                function(client, **options)

    return with_client
