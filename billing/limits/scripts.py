"""The Lua scripts of the limits in Redis, and the keys they work on.

The keys of an API key share one hash tag; no script touches two, and there is no key for all of them.
"""

import hashlib
from enum import Enum
from importlib import resources
from typing import Final

_PREFIX: Final = "lgw:"


class Script(Enum):
    """A script by its name; the file of that name beside this module holds its source."""

    TAKE = "take"
    GIVE = "give"
    DROP = "drop"


SOURCES: Final = {
    script: resources.files(__package__).joinpath(f"{script.value}.lua").read_bytes()
    for script in Script
}
DIGESTS: Final = {
    # Redis names scripts by SHA-1: https://redis.io/docs/latest/commands/evalsha/
    script: hashlib.sha1(source, usedforsecurity=False).hexdigest().encode()
    for script, source in SOURCES.items()
}


def keys_of(key_id: str) -> tuple[bytes, bytes]:
    """The keys of an API key: the hash of its buckets, and the hash of its leases."""
    return f"{_PREFIX}{{{key_id}}}:limits".encode(), f"{_PREFIX}{{{key_id}}}:leases".encode()
