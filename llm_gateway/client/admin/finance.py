"""What was used, statements, outstanding credit, and who did what."""

from datetime import datetime
from typing import Literal

from llm_gateway.api.views.audit import AuditList, AuditView
from llm_gateway.api.views.consumption import ConsumptionView
from llm_gateway.api.views.statements import OutstandingView, StatementView
from llm_gateway.client.methods import AskList, get, pages
from llm_gateway.client.requests import PAGE_SIZE, Ask
from llm_gateway.client.store import Period

UsageGroup = Literal["model", "scene", "provider", "key", "account"]


class Finance:
    """Sums over the ledger, and the audit trail."""

    @get("/admin/usage")
    def usage(
        self,
        *,
        account: str = "",
        period: Period = "24h",
        group_by: UsageGroup | None = None,
        time_zone: str = "UTC",
        run_id: str = "",
    ) -> Ask[ConsumptionView]:
        """Credits, tokens, calls and errors, of all accounts or one."""
        query = {
            "account": account,
            "period": period,
            "group_by": group_by,
            "time_zone": time_zone,
            "run_id": run_id,
        }
        return Ask(ConsumptionView, query=query)

    @get("/admin/statements/{account}/{month}")
    def statement(self, account: str, month: str) -> Ask[StatementView]:
        """A month (yyyy-mm, UTC) of an account: opening, sums by source, closing."""
        return Ask(StatementView, account, month)

    @get("/admin/outstanding")
    def outstanding(self, *, at: datetime | None = None) -> Ask[OutstandingView]:
        """The sums of all balances above and below 0, as of a moment (by default, now)."""
        return Ask(OutstandingView, query={"at": at})

    @pages("/admin/audit")
    def audit(
        self,
        *,
        action: str = "",
        target: str = "",
        page: int = 1,
        page_size: int = PAGE_SIZE,
        after: str = "",
    ) -> AskList[AuditList, AuditView]:
        """List administrators' acts, newest first."""
        return AskList(
            AuditList, page=page, page_size=page_size, after=after, action=action, target=target
        )
