"""The Lua scripts of the Redis hold store, and the keys they work on.

Each is idempotent by hold id. The keys of an account share one hash tag, so that a cluster keeps
them together; no script touches two accounts, and there is no key for all of them.
"""

import binascii
import hashlib
from enum import Enum
from importlib import resources
from typing import Final

MAX_EXACT: Final = 2**53 - 1  # Lua counts in doubles
SLOTS: Final = 16384
_PREFIX: Final = "lgw:"


class Script(Enum):
    """A script by its name; the file of that name beside this module holds its source."""

    RESERVE = "reserve"
    EXTEND = "extend"
    HEARTBEAT = "heartbeat"
    CANCEL = "cancel"
    APPLY = "apply"
    REGISTER = "register"
    MARK = "mark"
    LOAD = "load"
    LIST = "list"
    CLAIM = "claim"


SOURCES: Final = {
    script: resources.files(__package__).joinpath(f"{script.value}.lua").read_bytes()
    for script in Script
}
DIGESTS: Final = {
    # Redis names scripts by SHA-1: https://redis.io/docs/latest/commands/evalsha/
    script: hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    for script, source in SOURCES.items()
}


class Code:
    """What a script answers instead of an amount."""

    ABSENT: Final = -1  # the account is not here, or of an earlier epoch
    LATER: Final = -2  # the account is of a later epoch than whoever asks
    UNLOADED: Final = -3  # its holds are here, its balance is not


def keys_of(account: str) -> tuple[bytes, bytes]:
    """The account's keys: the hash with its balance, and the hash of its holds."""
    tag = _escape(account)
    return f"{_PREFIX}{{{tag}}}:account".encode(), f"{_PREFIX}{{{tag}}}:holds".encode()


ACCOUNTS_PATTERN: Final = f"{_PREFIX}{{*}}:account".encode()
HOLDS_PATTERN: Final = f"{_PREFIX}{{*}}:holds".encode()
EITHER_PATTERN: Final = f"{_PREFIX}{{*}}:[ah]*".encode()  # of the two keys of an account


def account_of(key: bytes) -> str:
    """The account that one of its keys belongs to."""
    tag = key.decode()[len(_PREFIX) + 1 :].rpartition("}:")[0]
    return tag.replace("%7B", "{").replace("%7D", "}").replace("%25", "%")


def slot_of(key: bytes) -> int:
    """The cluster slot of a key.

    https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#hash-tags
    """
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


def saturated(amount: int) -> int:
    """A balance as Redis may know it: beyond 2^53 less than it is, so that no sum is inexact."""
    return max(-MAX_EXACT, min(amount, MAX_EXACT))


def _escape(account: str) -> str:
    return account.replace("%", "%25").replace("{", "%7B").replace("}", "%7D")
