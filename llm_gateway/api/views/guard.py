"""The hold store."""

import msgspec


class RebuiltView(msgspec.Struct, frozen=True, kw_only=True):
    """In how many accounts `held` was wrong; null: the hold store is elsewhere, and reads anew."""

    accounts: int | None
