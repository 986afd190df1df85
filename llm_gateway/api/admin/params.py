"""What several admin endpoints take."""

from typing import Annotated

from litestar.params import QueryParameter

from billing.accounts import ACCOUNT_ID_RULE
from llm_gateway import errors

Filter = Annotated[str, QueryParameter(max_length=128)]
AccountId = Annotated[str, QueryParameter(max_length=64)]


def wrong_account(param: str) -> errors.InvalidRequestError:
    """The error for what cannot be an account."""
    return errors.InvalidRequestError(f"Not an account id: {ACCOUNT_ID_RULE}.", param=param)
