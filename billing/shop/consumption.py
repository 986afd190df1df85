"""What calls have used and cost: sums over a period, by groups and over time, out of the rollup.

Amounts are micro-credits, tokens come by class, and every sum is of integers. Calls count in the
quarter of an hour in which they began: charged ones once their charge is in the ledger, cancelled
ones once they are recorded. A run's calls are summed one by one, as recorded, charged yet or not.

Of one account, whole days (UTC) within a step are read by day where they are folded
(billing.settlement.day_fold), the rest by quarters. What is folded and the sums are seen at one
moment, so no call counts twice or not at all. Everybody's calls are read by quarters: most accounts
are too small to be folded.
"""

from collections.abc import Sequence
from typing import Final
from zoneinfo import ZoneInfo

import msgspec
from msgspec.structs import astuple
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from billing.db.invariants import BUCKET, IS_FAILURE, ROLLUP_SUMS
from billing.db.session import Database
from billing.kinds import GroupBy
from billing.shop.periods import DAY_MS, Period, Piece, Span, Step, pieces, span_between, span_of

GROUPS_MAX: Final = 1_000

_UTC: Final = ZoneInfo("UTC")

_Values = dict[str, object]


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
        if question.group_by is GroupBy.ACCOUNT and question.account is None:
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
        query = f"SELECT MIN(bucket_at) FROM usage_quarters WHERE true{_own(question)}"  # noqa: S608
        first_at = await connection.scalar(text(query), _whose(question))
    return span_of(question.period, question.zone, now, first_at=first_at)


async def _ask(
    connection: AsyncConnection, question: Question, span: Span, column: str, *, steps: bool = True
) -> list[_Row]:
    """The sums of each step, and of the dearest groups, if there is a column to group by.

    Each table is read once. Names of models may be anything that a client asks for: there can be as
    many groups as calls, and the database keeps what is left out to itself.
    """
    quarters, days = pieces(span, await _folded(connection, question, span))
    if steps and (days or connection.dialect.name != "postgresql"):
        counted, values = _by_pieces(connection, question, column, quarters, days)
    else:
        counted, values = _at_once(question, span, column, steps=steps)
    parts = ([_BY_STEP] if steps else []) + ([_BY_NAME] if column else [])
    query = f"WITH counted AS MATERIALIZED ({counted}) {' UNION ALL '.join(parts)}"
    rows = (await connection.execute(text(query), _whose(question) | values)).all()
    return [
        _Row(row[0], row[1], row[2], Sums(**dict(zip(ROLLUP_SUMS, row[3:], strict=True))))
        for row in rows
    ]


async def _folded(connection: AsyncConnection, question: Question, span: Span) -> Sequence[int]:
    """The days (UTC) within the span that can be read as a whole, in their order."""
    if question.account is None or question.run_id or span.to_at - span.from_at < DAY_MS:
        return ()
    values = {"account": question.account, "from_at": span.from_at, "to_at": span.to_at - DAY_MS}
    return (await connection.scalars(text(_FOLDED), values)).all()


def _at_once(question: Question, span: Span, column: str, *, steps: bool) -> tuple[str, _Values]:
    """The quarters of the whole span by step and group, in one go through the table."""
    values: _Values = {"from_at": span.from_at, "to_at": span.to_at}
    number = "0"
    if steps:
        number = "width_bucket(bucket_at, CAST(:edges AS bigint[])) - 1"
        values["edges"] = list(span.edges)
    where = f"bucket_at >= :from_at AND bucket_at < :to_at{_own(question)}"
    return _count(number, column, f"{_source(question)} AS q WHERE {where}"), values


def _by_pieces(
    connection: AsyncConnection,
    question: Question,
    column: str,
    quarters: Sequence[Piece],
    days: Sequence[Piece],
) -> tuple[str, _Values]:
    """Days where they are folded and quarters elsewhere: one range of a key after the other."""
    counts: list[str] = []
    values: _Values = {}
    for name, source, some in (
        ("quarters", _source(question), quarters),
        ("days", "usage_days", days),
    ):
        values |= _columns(connection, name, some)
        within = f"bucket_at >= piece.from_at AND bucket_at < piece.to_at{_own(question)}"
        rows = _PIECES[connection.dialect.name].format(name=name, source=source, within=within)
        counts.append(_count("piece.step", column, rows))
    return " UNION ALL ".join(counts), values


def _count(number: str, column: str, rows: str) -> str:
    name = column or "''"
    return f"SELECT {number} AS step, {name} AS name, {_SUMS} FROM {rows} GROUP BY 1, 2"  # noqa: S608


def _columns(connection: AsyncConnection, name: str, some: Sequence[Piece]) -> _Values:
    """The parameters of _PIECES."""
    rows = [astuple(piece) for piece in some]
    if connection.dialect.name != "postgresql":
        return {name: msgspec.json.encode(rows).decode()}
    columns = list(zip(*rows, strict=True)) or [()] * 3
    return {f"{name}_{number}": list(column) for number, column in enumerate(columns)}


def _own(question: Question) -> str:
    return _OWN if question.account is not None else ""


def _source(question: Question) -> str:
    return _RUN if question.run_id else "usage_quarters"


def _whose(question: Question) -> _Values:
    values: _Values = {}
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
    GroupBy.ACCOUNT: "account",
}
# The server expects far more groups than there are, and would sort a year of rows for them; and far
# more rows in a range, for which it would compile the query for longer than it takes.
_HASHED: Final = (
    "SELECT set_config('work_mem', '64MB', true), set_config('enable_sort', 'off', true),"
    " set_config('jit', 'off', true)"
)
_FOLDED: Final = (
    "SELECT day_at FROM folded_days WHERE account = :account AND whole"
    " AND day_at >= :from_at AND day_at <= :to_at ORDER BY day_at"
)
# A range of the key for each piece, one after the other; parameters begin with a name. PostgreSQL
# takes a range of which it knows nothing for a two hundredth of the table, and then reads all of
# the table rather than so many ranges: OFFSET forbids that.
_PIECES: Final = {
    "postgresql": "unnest(CAST(:{name}_0 AS integer[]), CAST(:{name}_1 AS bigint[]),"
    " CAST(:{name}_2 AS bigint[])) AS piece(step, from_at, to_at)"
    " CROSS JOIN LATERAL (SELECT * FROM {source} AS each WHERE {within} OFFSET 0) AS q",
    "sqlite": "(SELECT value ->> 0 AS step, value ->> 1 AS from_at, value ->> 2 AS to_at"
    " FROM json_each(:{name})) AS piece CROSS JOIN {source} AS q WHERE {within}",
}
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
