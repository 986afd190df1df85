"""What Redis is told about holds, as the words of its scripts."""

from collections.abc import Mapping
from enum import IntEnum

from billing.holds import HoldRequest
from billing.holds.ledger_view import AccountSnapshot
from billing.holds.redis_connection import Word
from billing.holds.scripts import MAX_EXACT, saturated


class Make(IntEnum):
    """What a registration may make where it is not there; see register.lua."""

    NOTHING = 0
    HOLDS = 1
    ACCOUNT = 2


class OwnHold:
    """A call of this process: what it may tell Redis again when Redis forgot."""

    __slots__ = ("account", "amount", "context", "process", "progress", "started_at")

    def __init__(self, request: HoldRequest, amount: int) -> None:
        self.account = request.account
        self.amount = amount
        self.progress = 0
        self.process = request.process
        self.started_at = request.started_at
        self.context = request.context


def by_account(holds: Mapping[str, OwnHold], process: str) -> dict[str, list[Word]]:
    """Of each account the words of its holds, for a registration under this process's id."""
    words: dict[str, list[Word]] = {}
    for hold_id, hold in holds.items():
        words.setdefault(hold.account, []).extend(
            (hold_id, hold.amount, hold.progress, process, hold.started_at, hold.context)
        )
    return words


def load_words(snapshot: AccountSnapshot, mark: str) -> list[Word]:
    """An account as the ledger knows it, to be written onto a mark."""
    words: list[Word] = [mark, saturated(snapshot.balance), snapshot.seq]
    for hold in snapshot.holds:
        state = "r" if hold.is_residual else "e"
        words += (hold.hold_id, min(hold.amount, MAX_EXACT), state, hold.started_at)
    return words
