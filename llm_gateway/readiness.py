"""What /readyz says of dependencies that gateways and ledger workers have in common."""

from billing.db.hot import DatabaseUnavailableError, HotDatabase
from billing.holds import HoldStore
from billing.holds.redis import RedisHoldStore
from billing.settlement.delivery import Delivery
from billing.settlement.registry import Registration
from llm_gateway.api.state import Dependency


async def database_row(hot: HotDatabase) -> Dependency:
    """Whether it takes writes."""
    try:
        await hot.ping()
    except DatabaseUnavailableError:
        return Dependency(name="database", up=False, detail="it takes no writes")
    return Dependency(name="database", up=True)


def guard_rows(holds: HoldStore) -> list[Dependency]:
    """None where the holds are in the database: its row says it."""
    if not isinstance(holds, RedisHoldStore):
        return []
    problem = holds.problem
    return [Dependency(name="redis", up=problem is None, detail=problem or "")]


def registry_rows(registration: Registration | None) -> list[Dependency]:
    """None where no other process could have to know of this one."""
    if registration is None:
        return []
    alive = registration.alive
    detail = "" if alive else "it could not be told that this process lives"
    return [Dependency(name="registry", up=alive, detail=detail)]


def broker_rows(delivery: Delivery | None) -> list[Dependency]:
    """None where no broker carries charges."""
    if delivery is None:
        return []
    up = delivery.connection.up
    detail = "" if up else "charges are settled from the outbox, a little later"
    return [Dependency(name="broker", up=up, detail=detail)]
