"""An account's charged calls as a list, newest charge first, with what each of them used and cost."""

from typing import Any, Final

import msgspec
from sqlalchemy import text

from billing.db.session import Database
from billing.shop.rows import fields_of
from pricing_rules.usage import Usage

LOOKED_AT_MAX: Final = 20_000  # charges for one page, however rare what is asked for


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A call as it was last recorded; `number` is that of its entry within the account."""

    number: int
    event_id: str
    key_id: str
    app: str
    scene: str
    provider: str
    model_requested: str
    model_sent: str
    run_id: str
    client_request_id: str
    book: int
    rule: str
    quality: str
    reason: str
    amount: int  # micro-credits
    started_at: int  # milliseconds since the epoch
    finished_at: int
    usage: Usage


class CallFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Which calls: "" and None let all pass. By when they began: `from_at` included, `to_at` not.

    `model` is that which was asked for, or that which was sent to the provider.
    """

    model: str = ""
    scene: str = ""
    run_id: str = ""
    from_at: int | None = None
    to_at: int | None = None


class Calls(msgspec.Struct, frozen=True, kw_only=True):
    """Some calls, and what to go on after; None: there are no more."""

    items: tuple[Call, ...]
    next_after: int | None


async def charged_calls(
    database: Database, account: str, wanted: CallFilter, *, after: int | None, limit: int
) -> Calls:
    """Calls whose charges follow number `after` downwards (None: the newest).

    Looks at no more than LOOKED_AT_MAX charges: there may be fewer items than `limit`, even none,
    and more of them further down. Calls without a charge are none of them, nor are free ones from
    before the account had a row.
    """
    query, values = _query(wanted)
    values |= {"account": account, "limit": limit + 1}
    values["after"] = 2**62 if after is None else after
    async with database.read() as connection:
        rows = (await connection.execute(text(query), values)).all()
        items = tuple(_call(row) for row in rows[:limit])
        if len(rows) > limit:
            return Calls(items=items, next_after=items[-1].number)
        if wanted.run_id:
            return Calls(items=items, next_after=None)
        looked = {"account": account, "after": values["after"]}
        lowest, number = (await connection.execute(text(_LOOKED_AT), looked)).one()
    return Calls(items=items, next_after=lowest if number == LOOKED_AT_MAX else None)


def _query(wanted: CallFilter) -> tuple[str, dict[str, Any]]:
    conditions = ""
    values: dict[str, Any] = {}
    for name, condition in _CONDITIONS.items():
        if (value := getattr(wanted, name)) not in ("", None):
            conditions += f" AND {condition}"
            values[name] = value
    # A run's calls are few and have an index; others are looked at from the newest charge on.
    source = _ENTRIES if wanted.run_id else _NEWEST
    return f"{_SELECT} FROM ({source}) AS e {_JOIN}{conditions} {_ORDER}", values


def _call(row: Any) -> Call:  # noqa: ANN401 - SQLAlchemy's row
    fields = {name: getattr(row, name) for name in _FIELDS}
    return msgspec.convert({**fields, "usage": fields_of(row, Usage)}, Call)


_FIELDS: Final = tuple(name for name in Call.__struct_fields__ if name != "usage")
_CONDITIONS: Final = {
    "model": "(u.model_sent = :model OR u.model_requested = :model)",
    "scene": "u.scene = :scene",
    "run_id": "u.run_id = :run_id AND u.run_id <> ''",
    "from_at": "u.started_at >= :from_at",
    "to_at": "u.started_at < :to_at",
}
_SELECT: Final = "SELECT e.number, " + ", ".join(
    f"u.{name}" for name in (*_FIELDS[1:], *Usage.__struct_fields__)
)
# The first entry of each call: a final after an estimate is another one of the same call.
_ENTRIES: Final = """
    SELECT event_id, account_seq AS number FROM ledger_entries
    WHERE account = :account AND account_seq < :after AND usage_event_id = event_id
"""
_NEWEST: Final = f"{_ENTRIES} ORDER BY account_seq DESC LIMIT {LOOKED_AT_MAX}"
_LOOKED_AT: Final = f"SELECT MIN(number), COUNT(*) FROM ({_NEWEST}) AS e"  # noqa: S608
_JOIN: Final = """
    JOIN usage u ON u.event_id = e.event_id AND u.account = :account
    WHERE NOT EXISTS (SELECT 1 FROM usage later
        WHERE later.event_id = u.event_id AND later.revision > u.revision)
"""
_ORDER: Final = "ORDER BY e.number DESC LIMIT :limit"
