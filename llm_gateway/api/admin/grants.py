"""/admin/grants: credit given by hand."""

from typing import Annotated, Final

from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import HeaderParameter, JSONBody

from billing.accounts import Grant
from billing.admins import Admin, Permission
from llm_gateway import errors
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.accounts import account_view
from llm_gateway.api.views.grants import GrantView, NewGrant
from llm_gateway.api.views.transactions import transaction_view

EVENT_ID_CHARACTERS_MAX: Final = 200
GRANT_PREFIX: Final = "grant:"


class GrantsController(Controller):
    """Credit given by hand."""

    path = "/grants"

    @post("/", status_code=200, permission=Permission.GRANTS)
    async def grant(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[NewGrant],
        idempotency_key: Annotated[
            str, HeaderParameter(name="Idempotency-Key", max_length=EVENT_ID_CHARACTERS_MAX)
        ] = "",
    ) -> GrantView:
        """Give credit. Send an event_id or an Idempotency-Key, and repeating gives it once.

        409 if the id was used with another account or amount.
        """
        done = await api.accounts.grant(
            Grant(
                event_id=_grant_id(api, data.event_id, idempotency_key),
                account=data.account,
                amount=data.amount_micro_credits,
                description=data.description,
                source=data.source,
                source_label=data.source_label,
            ),
            actor=admin.name,
        )
        return GrantView(
            repeated=done.repeated,
            entry=transaction_view(done.entry),
            account=account_view(done.account),
        )


def _grant_id(api: ApiState, event_id: str, idempotency_key: str) -> str:
    """The ledger's event id of a grant; a prefix keeps ids by header apart from calls."""
    if event_id and idempotency_key:
        raise errors.InvalidRequestError(
            "Send either event_id or the header Idempotency-Key.", param="event_id"
        )
    if event_id:
        return event_id
    return GRANT_PREFIX + (idempotency_key or api.new_event_id(api.now_ms()))
