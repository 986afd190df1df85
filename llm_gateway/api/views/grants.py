"""Credit given by hand."""

from typing import Annotated

import msgspec
from msgspec import Meta

from llm_gateway.api.views.accounts import AccountView
from llm_gateway.api.views.shared import Text
from llm_gateway.api.views.transactions import TransactionView


class NewGrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Credit to give. Repeated under one `event_id` (or Idempotency-Key) it is given once."""

    account: str
    amount_micro_credits: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    event_id: Annotated[str, Meta(max_length=200)] = ""
    description: Text = ""
    source: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "manual"
    source_label: Annotated[str, Meta(max_length=100)] = ""


class GrantView(msgspec.Struct, frozen=True, kw_only=True):
    """The entry of a grant, and the account as it is now."""

    repeated: bool
    entry: TransactionView
    account: AccountView
