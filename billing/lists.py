"""Lists that come in pages: which page was asked for, and what came of it."""

from collections.abc import Sequence
from typing import Final, Generic, TypeVar

import msgspec

PAGE_SIZE_MAX: Final = 100

T = TypeVar("T")


class PageRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Page `page` (from 1) of `page_size` rows; or, with `after`, the rows that follow that cursor.

    A cursor is the `next_after` of an earlier page. Rows that were added meanwhile shift pages, but
    never what follows a cursor. Lists without a cursor of their own are read by page number only.
    """

    page: int = 1
    page_size: int = 20
    after: int | None = None

    @property
    def offset(self) -> int:
        """Rows to skip; none behind a cursor."""
        return 0 if self.after is not None else (self.page - 1) * self.page_size


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """One page of a list, newest first."""

    items: tuple[T, ...]
    page: int
    page_size: int
    total: int
    has_more: bool
    next_after: int | None  # the cursor of the last item, if there is one


def make_page(
    request: PageRequest, rows: list[T], cursors: Sequence[int | None], total: int
) -> Page[T]:
    """Cut a page out of up to page_size + 1 rows; a row too many behind a cursor means more follow.

    By page number has_more is page x page_size < total (DESIGN 12).
    """
    items = tuple(rows[: request.page_size])
    more_by_number = request.page * request.page_size < total
    more_by_cursor = len(rows) > request.page_size
    return Page(
        items=items,
        page=request.page,
        page_size=request.page_size,
        total=total,
        has_more=more_by_number if request.after is None else more_by_cursor,
        next_after=cursors[len(items) - 1] if items else None,
    )
