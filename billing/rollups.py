"""Pure: what a batch of settled calls adds to the rollup, one row for each group of calls.

Days that are long over are folded (billing.settlement.day_fold): what comes so late that its day may
be folded already has to say so. Between the two limits lies more than a day, so that neither clocks
that differ nor a transaction that takes its time lets a charge pass for an ordinary one.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from msgspec.structs import astuple

from billing.db.invariants import DAY_MS, QUARTER_MS, ROLLUP_KEY, ROLLUP_SUMS
from billing.events import ChargeEvent

Value = str | int

COLUMNS: Final = ", ".join((*ROLLUP_KEY, *ROLLUP_SUMS))

_KEY_WIDTH: Final = len(ROLLUP_KEY)


def late_before(now: int) -> int:
    """The start of yesterday (UTC): a call of before is settled late."""
    return now - now % DAY_MS - DAY_MS


def foldable_before(now: int) -> int:
    """A day that began earlier may be folded: two days at least have passed since its end."""
    return now - now % DAY_MS - 2 * DAY_MS


def late_days(calls: Iterable[Sequence[Value]], now: int) -> list[tuple[str, int]]:
    """Account and day of what is late, in one order for all; given the two and a time, each."""
    before = late_before(now)
    late = {(str(call[0]), at - at % DAY_MS) for call in calls if (at := int(call[1])) < before}
    return sorted(late)


class Rollup:
    """Sums by account, quarter of the hour in which the call began, key, app, scene, provider and model sent.

    A final that takes the place of an estimate is added, and the estimate taken back: the two may
    lie in different groups. What comes out is to be added to what a group has.
    """

    __slots__ = ("_groups",)

    def __init__(self) -> None:
        # The counts of each call, summed at the end: column by column is quicker than call by call.
        self._groups: dict[tuple[Value, ...], list[tuple[int, ...]]] = {}

    def add(self, event: ChargeEvent, *, failed: bool = False) -> None:
        """A call was charged. Cancelled ones add themselves, when they are recorded."""
        context = event.context
        started_at = context.started_at
        key = (
            context.account,
            started_at - started_at % QUARTER_MS,
            context.key_id,
            context.app,
            context.scene,
            context.provider,
            context.model_sent,
        )
        counts = (*astuple(event.usage), event.amount, 1, int(failed))
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = [counts]
        else:
            group.append(counts)

    def take_back(self, row: Sequence[Value]) -> None:
        """What was charged of a call holds no more; `row` has COLUMNS, its `calls` is 1."""
        counts = tuple(-int(value) for value in row[_KEY_WIDTH:])
        self._groups.setdefault(tuple(row[:_KEY_WIDTH]), []).append(counts)

    def late_days(self, now: int) -> list[tuple[str, int]]:
        """Account and day of the groups that are late."""
        return late_days(self._groups, now)

    def rows(self) -> list[tuple[Value, ...]]:
        """COLUMNS of each group that changes, in one order for all: two writers cannot deadlock."""
        return [(*key, *sums) for key in sorted(self._groups) if any(sums := self._sums(key))]

    def _sums(self, key: tuple[Value, ...]) -> tuple[int, ...]:
        counts = self._groups[key]
        return counts[0] if len(counts) == 1 else tuple(map(sum, zip(*counts, strict=True)))
