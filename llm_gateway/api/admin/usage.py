"""/admin/usage: consumption, of all accounts or of one."""

from typing import Literal

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from billing.admins import Permission
from billing.kinds import GroupBy
from billing.shop.consumption import Question, consumption
from billing.shop.fields import FieldProblem
from billing.shop.periods import Period
from llm_gateway.api.admin.params import AccountId
from llm_gateway.api.periods import RunId, ZoneName, zone_named
from llm_gateway.api.problems import wrong_fields
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.consumption import ConsumptionView, consumption_view


class UsageController(Controller):
    """What was used."""

    path = "/usage"

    @get("/", permission=Permission.READ)
    async def usage(
        self,
        api: NamedDependency[ApiState],
        account: AccountId = "",
        period: FromQuery[Literal["24h", "7d", "30d", "all"]] = "24h",
        group_by: FromQuery[Literal["model", "scene", "provider", "key", "account"] | None] = None,
        time_zone: ZoneName = "UTC",
        run_id: RunId = "",
    ) -> ConsumptionView:
        """Credits, tokens, calls and errors: see /credit-store/consumption.

        Without `account`, of all of them; a `run_id` belongs to one account.
        """
        if run_id and not account:
            message = "must be given with run_id"
            raise wrong_fields([FieldProblem(field="account", message=message)])
        question = Question(
            account=account or None,
            period=Period(period),
            group_by=GroupBy(group_by) if group_by else None,
            zone=zone_named(time_zone),
            run_id=run_id,
        )
        return consumption_view(question, await consumption(api.database, question, api.now_ms()))
