"""Reads by pages: one of a list by its number, or all of them, one after the other."""

from collections.abc import AsyncIterator, Callable
from typing import Final, TypeVar

from sqlalchemy import Column, Select, func, select
from sqlalchemy.engine import Row

from billing.db.session import Database
from billing.lists import Page, PageRequest, make_page

ROWS_AT_ONCE: Final = 100

T = TypeVar("T")


async def read_page(
    database: Database,
    wanted: Select[*tuple[object, ...]],
    request: PageRequest,
    make: Callable[[Row[*tuple[object, ...]]], T],
) -> Page[T]:
    """The page of `wanted`, which says its order, and how many rows there are in all.

    Raises what the database raises.
    """
    counted = select(func.count()).select_from(wanted.order_by(None).subquery())
    async with database.read() as connection:
        rows = (
            await connection.execute(wanted.limit(request.page_size).offset(request.offset))
        ).all()
        total = await connection.scalar(counted)
    return make_page(request, [make(row) for row in rows], [None] * len(rows), total or 0)


async def each_row(
    database: Database, wanted: Select[*tuple[object, ...]], key: Column[str]
) -> AsyncIterator[Row[*tuple[object, ...]]]:
    """All that is wanted, in the order of a unique column, read some at a time.

    Whoever goes through it may change rows as they come: none is read twice, and one that stays as
    it is does not hide those behind it.
    """
    after: str | None = None
    while True:
        page = wanted if after is None else wanted.where(key > after)
        async with database.read() as connection:
            rows = (await connection.execute(page.order_by(key).limit(ROWS_AT_ONCE))).all()
        for row in rows:
            yield row
        if len(rows) < ROWS_AT_ONCE:
            return
        after = getattr(rows[-1], key.key)
