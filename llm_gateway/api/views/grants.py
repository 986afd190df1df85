"""Credit given by hand."""

from typing import Annotated

import msgspec
from msgspec import Meta

from llm_gateway.api.views.accounts import AccountView
from llm_gateway.api.views.shared import AccountName, Amount, Line, Source, Text
from llm_gateway.api.views.transactions import TransactionView


class NewGrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Credit to give. Repeated under one `event_id` (or Idempotency-Key) it is given once."""

    account: AccountName
    amount_micro_credits: Amount
    event_id: Annotated[str, Meta(max_length=200, pattern=r"^[!-~]*$(?!\n)")] = ""
    description: Text = ""
    source: Source = "manual"
    source_label: Line = ""


class GrantView(msgspec.Struct, frozen=True, kw_only=True):
    """The entry of a grant, and the account as it is now."""

    repeated: bool
    entry: TransactionView
    account: AccountView
