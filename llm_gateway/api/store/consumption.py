"""/credit-store/consumption: what an account's calls used and cost."""

from typing import Literal

from litestar import Controller, get
from litestar.di import NamedDependency
from litestar.params import FromQuery

from billing.kinds import GroupBy
from billing.shop.consumption import Question, consumption
from billing.shop.periods import Period
from llm_gateway.api.periods import RunId, ZoneName, zone_named
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.consumption import ConsumptionView, consumption_view
from llm_gateway.identity import Caller


class ConsumptionController(Controller):
    """An account's consumption."""

    path = "/consumption"

    @get("/")
    async def consumption(
        self,
        api: NamedDependency[ApiState],
        caller: NamedDependency[Caller],
        period: FromQuery[Literal["24h", "7d", "30d", "all"]] = "24h",
        group_by: FromQuery[Literal["model", "scene", "provider", "key"] | None] = None,
        time_zone: ZoneName = "UTC",
        run_id: RunId = "",
    ) -> ConsumptionView:
        """Credits, tokens, calls and errors of a period, by group and over time.

        24h: 24 hours back from the end of the running quarter of an hour. 7d and 30d: today and the
        6 or 29 days before, from midnight in `time_zone`. all: from the day of the first call. With
        `run_id`, the calls of that run alone, whenever they were.
        """
        question = Question(
            account=caller.account,
            period=Period(period),
            group_by=GroupBy(group_by) if group_by else None,
            zone=zone_named(time_zone),
            run_id=run_id,
        )
        return consumption_view(question, await consumption(api.database, question, api.now_ms()))
