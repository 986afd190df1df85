"""The four clients: the store's and the admin API's, each in a form that waits and one that is awaited."""

from typing import Self

import httpx2

from llm_gateway.client.admin.accounts import Accounts
from llm_gateway.client.admin.finance import Finance
from llm_gateway.client.admin.keys import Keys
from llm_gateway.client.admin.operations import Operations
from llm_gateway.client.admin.price_books import PriceBooks
from llm_gateway.client.admin.rerating import Rerating
from llm_gateway.client.admin.shop import Orders, Products, Rewards
from llm_gateway.client.retries import Retries
from llm_gateway.client.store import Models, Store
from llm_gateway.client.transport import (
    ANSWER_SECONDS,
    DEFAULT_RETRIES,
    AsyncTransport,
    SyncTransport,
    target,
)


class _Admin(Accounts, Keys, Products, Orders, Rewards, PriceBooks, Rerating, Finance, Operations):
    """Every address below /admin."""


class _Owner(Models, Store):
    """Every address for the owner of an account."""


class GatewayClient(_Owner, SyncTransport):
    """The credit store and the models, with a user's key, or an app's and the account it is for.

    `url` is the gateway's address, without /v1. Close it, or use it in a `with`.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        account: str = "",
        answer_seconds: float = ANSWER_SECONDS,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(
            target(url, key, account),
            answer_seconds=answer_seconds,
            retries=retries,
            transport=transport,
        )

    def for_account(self, account: str) -> Self:
        """The same for another account of an app's key; it shares connections, and is not closed."""
        return self.lent(account)


class AsyncGatewayClient(_Owner, AsyncTransport):
    """As GatewayClient, to be awaited; close it with `aclose`, or use it in an `async with`."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        account: str = "",
        answer_seconds: float = ANSWER_SECONDS,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(
            target(url, key, account),
            answer_seconds=answer_seconds,
            retries=retries,
            transport=transport,
        )

    def for_account(self, account: str) -> Self:
        """The same for another account of an app's key; it shares connections, and is not closed."""
        return self.lent(account)


class AdminClient(_Admin, SyncTransport):
    """The admin API, with an administrator's token."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx2.BaseTransport | None = None,
    ) -> None:
        super().__init__(
            target(url, token), answer_seconds=answer_seconds, retries=retries, transport=transport
        )


class AsyncAdminClient(_Admin, AsyncTransport):
    """As AdminClient, to be awaited; close it with `aclose`, or use it in an `async with`."""

    def __init__(
        self,
        url: str,
        token: str,
        *,
        answer_seconds: float = ANSWER_SECONDS,
        retries: Retries = DEFAULT_RETRIES,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        super().__init__(
            target(url, token), answer_seconds=answer_seconds, retries=retries, transport=transport
        )
