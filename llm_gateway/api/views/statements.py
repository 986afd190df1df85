"""What finance asks for: statements of accounts, and what is outstanding."""

from typing import TYPE_CHECKING

import msgspec

from llm_gateway.api.views.shared import Time, moment

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.shop.statements import Outstanding, Statement


class StatementLineView(msgspec.Struct, frozen=True, kw_only=True):
    """The month's entries of one source and direction."""

    source: str
    direction: str
    amount_micro_credits: int
    entries: int


class StatementView(msgspec.Struct, frozen=True, kw_only=True):
    """A month of an account, in UTC, by when entries were posted.

    opening + the lines = closing, which is the opening of the next month. `closed`: the month is
    over, and its statement will not change any more.
    """

    account: str
    month: str
    from_: Time = msgspec.field(name="from")
    to: Time
    opening_micro_credits: int
    closing_micro_credits: int
    lines: list[StatementLineView]
    entries: int
    first_seq: int | None
    last_seq: int | None
    closed: bool


class OutstandingView(msgspec.Struct, frozen=True, kw_only=True):
    """The balances of all accounts just before `at`.

    `positive`: credit that is owed to its owners. `negative`: what was used beyond it, below 0. The
    two are never set off against each other.
    """

    at: Time
    positive_micro_credits: int
    negative_micro_credits: int
    accounts_positive: int
    accounts_negative: int


def statement_view(told: "Statement") -> StatementView:
    """A statement."""
    return StatementView(
        account=told.account,
        month=told.month.name,
        from_=moment(told.month.from_at),
        to=moment(told.month.to_at),
        opening_micro_credits=told.opening,
        closing_micro_credits=told.closing,
        lines=[
            StatementLineView(
                source=line.source,
                direction=line.direction,
                amount_micro_credits=line.amount,
                entries=line.entries,
            )
            for line in told.lines
        ],
        entries=told.entries,
        first_seq=told.first_seq,
        last_seq=told.last_seq,
        closed=told.closed,
    )


def outstanding_view(told: "Outstanding") -> OutstandingView:
    """What is outstanding."""
    return OutstandingView(
        at=moment(told.at),
        positive_micro_credits=told.positive,
        negative_micro_credits=told.negative,
        accounts_positive=told.accounts_positive,
        accounts_negative=told.accounts_negative,
    )
