"""Which version of the price book holds when: the activations in the order in which they take effect. Pure.

Of the activations whose time has come the latest holds, and of two for the same moment the one
decided later: that takes the other's place, as if it had never been.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

# The one in effect by the database's clock, and the one before: a process whose clock is a little
# behind the database's has not switched yet.
PAST_KEPT: Final = 2


class Activation(msgspec.Struct, frozen=True, kw_only=True):
    """The decision that a version holds from a moment on (milliseconds since the epoch)."""

    version: int
    effective_from: int
    activated_by: str = ""


class Timeline:
    """All activations that count, ascending; given in the order in which they were decided."""

    def __init__(self, decided: Iterable[Activation]) -> None:
        latest = {each.effective_from: each for each in decided}
        self.activations = tuple(latest[at] for at in sorted(latest))

    def at(self, moment: int) -> Activation | None:
        """The activation that holds at a moment; None before the first."""
        return next(
            (each for each in reversed(self.activations) if each.effective_from <= moment), None
        )

    def after(self, moment: int) -> tuple[Activation, ...]:
        """What is to take effect later than a moment."""
        return tuple(each for each in self.activations if each.effective_from > moment)

    def of_late(self, moment: int) -> tuple[Activation, ...]:
        """What a process has to know at a moment: what holds, what held before, what is to come."""
        past = len(self.activations) - len(self.after(moment))
        return self.activations[max(0, past - PAST_KEPT) :]

    def before(self, moment: int) -> int | None:
        """The version to go back to from the one that holds at a moment; None if there is none.

        Going back from C to B in A, B, C is one step: the next one leads to A, and not to C again.
        """
        steps: list[int] = []
        for each in self.activations:
            if each.effective_from > moment or steps[-1:] == [each.version]:
                continue
            if steps[-2:-1] == [each.version]:
                steps.pop()
            else:
                steps.append(each.version)
        return steps[-2] if len(steps) > 1 else None
