"""Reads a page by its number, for lists that have no cursor of their own."""

from collections.abc import Callable
from typing import TypeVar

from sqlalchemy import Select, func, select
from sqlalchemy.engine import Row

from billing.db.session import Database
from billing.lists import Page, PageRequest, make_page

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
