"""/admin/statements and /admin/outstanding: what finance asks of the ledger."""

from datetime import datetime
from typing import Annotated

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromPath, QueryParameter

from billing.accounts import is_account_id
from billing.admins import Permission
from billing.shop.fields import FieldProblem
from billing.shop.statements import UnknownMonthError, month_of, outstanding, statement
from llm_gateway import errors
from llm_gateway.api.periods import NO_ZONE
from llm_gateway.api.problems import wrong_fields
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.shared import milliseconds
from llm_gateway.api.views.statements import (
    OutstandingView,
    StatementView,
    outstanding_view,
    statement_view,
)


class StatementsController(Controller):
    """Statements of accounts."""

    path = "/statements"

    @get("/{account:str}/{month:str}", permission=Permission.STATEMENTS)
    async def statement(
        self, api: NamedDependency[ApiState], account: FromPath[str], month: FromPath[str]
    ) -> StatementView:
        """A month (yyyy-mm, UTC) of an account: opening, sums by source, closing.

        An entry belongs to the month in which it was posted: a month that is over never changes.
        """
        try:
            wanted = month_of(month)
        except UnknownMonthError:
            message = "must be a month, as 2026-09"
            raise wrong_fields([FieldProblem(field="month", message=message)]) from None
        if not is_account_id(account):
            raise errors.NotFoundError("There is no such account.")
        info = await api.accounts.get(account)
        return statement_view(await statement(api.database, info.account, wanted, api.now_ms()))


class OutstandingController(Controller):
    """Credit that is outstanding."""

    path = "/outstanding"

    @get("/", permission=Permission.STATEMENTS)
    async def outstanding(
        self,
        api: NamedDependency[ApiState],
        at: Annotated[datetime | None, QueryParameter(description="Not included; now.")] = None,
    ) -> OutstandingView:
        """The sums of all balances above and below 0, as of a moment (by default, now)."""
        if at is not None and at.tzinfo is None:
            raise wrong_fields([FieldProblem(field="at", message=NO_ZONE)])
        moment = api.now_ms() + 1 if at is None else milliseconds(at)
        return outstanding_view(await outstanding(api.database, moment))
