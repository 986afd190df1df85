"""What Redis answers about accounts and holds, as values."""

import asyncio
from collections.abc import Set as AbstractSet
from typing import Final

import hiredis
import msgspec

from billing.holds.redis_connection import RedisConnection, RedisUnavailableError, Reply
from billing.settlement.orphans import HeldCall

# Connect anew, wherever that leads; a server that forgot the scripts is given them again by that.
_NOT_THE_SERVER: Final = ("READONLY", "NOAUTH", "MASTERDOWN", "NOSCRIPT")


class RedisEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An account as Redis has it; None where Redis has nothing."""

    account: str
    epoch: int | None
    seq: int | None
    balance: int | None
    held: int | None
    holds: tuple[tuple[str, bytes], ...]  # id, "amount progress state process started_at"


def checked(reply: Reply, connection: RedisConnection) -> Reply:
    """A reply that is no error; raises RedisUnavailableError."""
    if isinstance(reply, hiredis.ReplyError):
        code = str(reply).partition(" ")[0]
        if code in _NOT_THE_SERVER:
            connection.abort(f"Redis says {code}")
        raise RedisUnavailableError(f"Redis says {code}")
    return reply


def forget(future: asyncio.Future[Reply]) -> None:
    """A command that nobody waits for: what is lost of it is sent again or applied by `resend`."""
    if not future.cancelled():
        future.exception()


def numbers_of(reply: Reply) -> tuple[int, int]:
    """Balance and held of a refusal; nothing at all for an account without a row."""
    if reply is None:
        return 0, 0
    assert isinstance(reply, list)
    balance, held = reply
    assert isinstance(balance, int)
    assert isinstance(held, int)
    return balance, held


def entry_of(account: str, reply: Reply) -> RedisEntry:
    assert isinstance(reply, list)
    words = [word for word in reply if isinstance(word, bytes)]
    epoch, seq, balance, held = (int(word) if word else None for word in words[:4])
    ids = [word.decode() for word in words[4::2]]
    return RedisEntry(
        account=account,
        epoch=epoch,
        seq=seq,
        balance=balance,
        held=held,
        holds=tuple(zip(ids, words[5::2], strict=True)),
    )


def is_orphan(head: bytes, alive: AbstractSet[str]) -> bool:
    """A live or claimed hold of a process that is gone; "-" is nobody: the ledger brought it."""
    _, _, state, process, _ = head.split(b" ")
    return state in (b"l", b"s") and process != b"-" and process.decode() not in alive


def held_call(account: str, hold_id: str, value: bytes) -> HeldCall:
    amount, progress, _, process, _, context = value.split(b" ", 5)
    return HeldCall(
        hold_id=hold_id,
        account=account,
        amount=int(amount),
        progress=int(progress),
        process=process.decode(),
        context=context,
    )
