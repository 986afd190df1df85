"""What calls have used and cost: sums over a period, by groups and over time, out of the rollup.

Amounts are micro-credits, tokens come by class, and every sum is of integers. Calls count in the
quarter of an hour in which they began: charged ones once their charge is in the ledger, cancelled
ones once they are recorded. A run's calls are summed one by one, as recorded, charged yet or not.
"""

from enum import StrEnum
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.invariants import BUCKET, IS_FAILURE, ROLLUP_SUMS
from billing.db.session import Database
from billing.shop.periods import Period, Span, Step, span_between, span_of

GROUPS_MAX: Final = 1_000

_UTC: Final = ZoneInfo("UTC")


class GroupBy(StrEnum):
    """By what calls are put together."""

    MODEL = "model"  # as sent to the provider
    SCENE = "scene"
    PROVIDER = "provider"
    KEY = "key"
    ACCOUNT = "account"  # for administrators


class Sums(msgspec.Struct, frozen=True, kw_only=True):
    """Of some calls: tokens by class, micro-credits, how many there were and how many failed."""

    input: int = 0
    cached_input: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    audio_input: int = 0
    image_input: int = 0
    output: int = 0
    reasoning: int = 0
    audio_output: int = 0
    amount: int = 0
    calls: int = 0
    errors: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            **{name: getattr(self, name) + getattr(other, name) for name in self.__struct_fields__}
        )


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one model, scene, provider, key (its id) or account."""

    name: str
    sums: Sums


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one step of the time; milliseconds since the epoch, `to_at` not included."""

    from_at: int
    to_at: int
    sums: Sums


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """Whose calls, when, and by what. `account` None: everybody's. `run_id` "": any run, or none."""

    account: str | None
    period: Period = Period.DAY
    group_by: GroupBy | None = None
    zone: ZoneInfo = _UTC
    run_id: str = ""  # of one account's; the period is then that of the run


class Consumption(msgspec.Struct, frozen=True, kw_only=True):
    """The answer; `from_at` included, `to_at` not.

    groups: dearest first, at most GROUPS_MAX; none where nothing was to be grouped.
    series: every step of the time, those without calls too.
    """

    from_at: int
    to_at: int
    step: Step
    totals: Sums
    groups: tuple[Group, ...]
    groups_left_out: int
    series: tuple[Slice, ...]


async def consumption(database: Database, question: Question, now: int) -> Consumption:
    """What was consumed, as of `now` (milliseconds since the epoch)."""
    async with database.read() as connection:
        if connection.dialect.name == "postgresql":
            await connection.execute(text(_HASHED))
        span = await _span(connection, question, now)
        if question.group_by is GroupBy.ACCOUNT:
            # There may be very many: not each of them in each step.
            rows = [
                *await _ask(connection, question, span, ""),
                *await _ask(connection, question, span, "account", steps=False),
            ]
        else:
            column = _COLUMNS.get(question.group_by, "") if question.group_by else ""
            rows = await _ask(connection, question, span, column)
    return _answer(span, rows)


class _Row(msgspec.Struct, frozen=True):
    """The sums of a step (by its number), or (None) of one of `groups` groups."""

    step: int | None
    name: str
    groups: int
    sums: Sums


def _answer(span: Span, rows: list[_Row]) -> Consumption:
    steps = {row.step: row.sums for row in rows if row.step is not None}
    named = [row for row in rows if row.step is None]
    totals = Sums()
    for sums in steps.values():
        totals += sums
    named.sort(key=lambda each: (-each.sums.amount, -each.sums.calls, each.name))
    ends = (*span.edges[1:], span.to_at)
    return Consumption(
        from_at=span.from_at,
        to_at=span.to_at,
        step=span.step,
        totals=totals,
        groups=tuple(Group(name=row.name, sums=row.sums) for row in named),
        groups_left_out=named[0].groups - len(named) if named else 0,
        series=tuple(
            Slice(from_at=begin, to_at=end, sums=steps.get(number, Sums()))
            for number, (begin, end) in enumerate(zip(span.edges, ends, strict=True))
        ),
    )


async def _span(connection: AsyncConnection, question: Question, now: int) -> Span:
    if question.run_id:
        found = (await connection.execute(text(_RUN_TIMES), _whose(question))).one()
        if found[0] is not None:
            return span_between(found[0], found[1], question.zone)
        return span_of(Period.DAY, question.zone, now)
    first_at = None
    if question.period is Period.ALL:
        own = _OWN if question.account is not None else ""
        query = f"SELECT MIN(bucket_at) FROM usage_quarters WHERE true{own}"  # noqa: S608
        first_at = await connection.scalar(text(query), _whose(question))
    return span_of(question.period, question.zone, now, first_at=first_at)


async def _ask(
    connection: AsyncConnection, question: Question, span: Span, column: str, *, steps: bool = True
) -> list[_Row]:
    """The sums of each step, and of the dearest groups, if there is a column to group by.

    The table is read once. Names of models may be anything that a client asks for: there can be as
    many groups as calls, and the database keeps what is left out to itself.
    """
    name = column or "''"
    own = _OWN if question.account is not None else ""
    where = f"bucket_at >= :from_at AND bucket_at < :to_at{own}"
    source = _RUN if question.run_id else "usage_quarters"
    values: dict[str, object] = {**_whose(question), "from_at": span.from_at, "to_at": span.to_at}
    if not steps:
        counted = (
            f"SELECT 0 AS step, {name} AS name, {_SUMS} FROM {source} AS q WHERE {where} GROUP BY 2"  # noqa: S608
        )
    elif connection.dialect.name == "postgresql":
        values["edges"] = list(span.edges)
        number = "width_bucket(bucket_at, CAST(:edges AS bigint[])) - 1"
        counted = (
            f"SELECT {number} AS step, {name} AS name, {_SUMS} FROM {source} AS q"  # noqa: S608
            f" WHERE {where} GROUP BY 1, 2"
        )
    else:
        ends = (*span.edges[1:], span.to_at)
        edges = msgspec.json.encode([*zip(span.edges, ends, strict=True)]).decode()
        values = {**_whose(question), "edges": edges}
        # A range of the primary key for each step, one after the other.
        counted = (
            f"SELECT step.key AS step, {name} AS name, {_SUMS} FROM json_each(:edges) AS step"  # noqa: S608
            f" CROSS JOIN {source} AS q WHERE bucket_at >= step.value ->> 0"
            f" AND bucket_at < step.value ->> 1{own} GROUP BY 1, 2"
        )
    parts = ([_BY_STEP] if steps else []) + ([_BY_NAME] if column else [])
    query = f"WITH counted AS MATERIALIZED ({counted}) {' UNION ALL '.join(parts)}"
    rows = (await connection.execute(text(query), values)).all()
    return [
        _Row(row[0], row[1], row[2], Sums(**dict(zip(ROLLUP_SUMS, row[3:], strict=True))))
        for row in rows
    ]


def _whose(question: Question) -> dict[str, object]:
    values: dict[str, object] = {}
    if question.account is not None:
        values["account"] = question.account
    if question.run_id:
        values["run_id"] = question.run_id
    return values


_COLUMNS: Final = {
    GroupBy.MODEL: "model",
    GroupBy.SCENE: "scene",
    GroupBy.PROVIDER: "provider",
    GroupBy.KEY: "key_id",
}
# The server expects far more groups than there are, and would sort a year of rows for them.
_HASHED: Final = (
    "SELECT set_config('work_mem', '64MB', true), set_config('enable_sort', 'off', true)"
)
_OWN: Final = " AND account = :account"
_SUMS: Final = ", ".join(f"CAST(SUM({name}) AS BIGINT) AS {name}" for name in ROLLUP_SUMS)
_BY_STEP: Final = f"SELECT step, '', 0, {_SUMS} FROM counted GROUP BY step"  # noqa: S608
_BY_NAME: Final = f"""
    SELECT * FROM (
        SELECT CAST(NULL AS INTEGER), name, COUNT(*) OVER (), {_SUMS} FROM counted GROUP BY name
        ORDER BY SUM(amount) DESC, SUM(calls) DESC, name LIMIT {GROUPS_MAX}
    ) AS dearest
"""  # noqa: S608

# The calls of a run as rows of the rollup. The partial index wants to be told that there is a run.
_OF_RUN: Final = """
    FROM usage u WHERE account = :account AND run_id = :run_id AND run_id <> ''
        AND NOT EXISTS (SELECT 1 FROM usage later
            WHERE later.event_id = u.event_id AND later.revision > u.revision)
"""
_RUN_TIMES: Final = f"SELECT MIN(started_at), MAX(started_at) {_OF_RUN}"
_TOKENS: Final = ROLLUP_SUMS[: ROLLUP_SUMS.index("amount")]
_RUN: Final = f"""(
    SELECT account, {BUCKET} AS bucket_at, key_id, scene, provider, model_sent AS model,
        {", ".join(f"CASE WHEN cancelled THEN 0 ELSE {name} END AS {name}" for name in _TOKENS)},
        amount, 1 AS calls, {IS_FAILURE} AS errors
    {_OF_RUN}
)"""
