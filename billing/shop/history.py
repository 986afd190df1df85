"""What an account's calls of one kind have used so far: what a further one can be expected to use."""

from typing import Final

import msgspec
from sqlalchemy import text

from billing.db.invariants import ROLLUP_SUMS
from billing.db.session import Database
from pricing_rules.rates import TOKEN_CLASSES
from pricing_rules.usage import Usage

HISTORY_DAYS: Final = 30
QUARTERS_MAX: Final = 1_000  # of an hour, the newest: enough to go by, and read in a moment

_DAY_MS: Final = 86_400_000
_INPUT: Final = TOKEN_CLASSES[: TOKEN_CLASSES.index("output")]
_OUTPUT: Final = TOKEN_CLASSES[len(_INPUT) :]


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Some calls that did not fail, one at least, and what all of them used."""

    calls: int
    usage: Usage

    def expected(self, input_tokens: int, choices: int, output_tokens_max: int) -> Usage:
        """What a call with so long an input will use, about.

        As much output as the mean of these calls, for each choice, and no more than it may; input
        and output made up as theirs: what was cached of their input will be cached of this.
        """
        output = min(choices * -(-self.usage.total_output // self.calls), output_tokens_max)
        return Usage(
            **_shared_out(input_tokens, self.usage, _INPUT),
            **_shared_out(output, self.usage, _OUTPUT),
        )


async def history_of(
    database: Database, *, account: str, scene: str, provider: str, model: str, now_ms: int
) -> History | None:
    """The calls of the last HISTORY_DAYS, by the model as sent to the provider; None: there are none."""
    values = {
        "account": account,
        "since": now_ms - HISTORY_DAYS * _DAY_MS,
        "scene": scene,
        "provider": provider,
        "model": model,
    }
    async with database.read() as connection:
        row = (await connection.execute(text(_SUMS), values)).one()
    found = dict(zip(ROLLUP_SUMS, row, strict=True))
    answered = (found["calls"] or 0) - (found["errors"] or 0)
    if answered <= 0:
        return None
    return History(calls=answered, usage=Usage(**{name: found[name] for name in TOKEN_CLASSES}))


def _shared_out(tokens: int, usage: Usage, classes: tuple[str, ...]) -> dict[str, int]:
    """Tokens by class as `usage` has them; what is left of rounding down goes to the first class."""
    total = sum(getattr(usage, name) for name in classes)
    shares = {name: tokens * getattr(usage, name) // total if total else 0 for name in classes}
    shares[classes[0]] += tokens - sum(shares.values())
    return shares


_SUMS: Final = f"""
    SELECT {", ".join(f"CAST(SUM({name}) AS BIGINT) AS {name}" for name in ROLLUP_SUMS)} FROM (
        SELECT {", ".join(ROLLUP_SUMS)} FROM usage_quarters
        WHERE account = :account AND bucket_at >= :since
            AND scene = :scene AND provider = :provider AND model = :model
        ORDER BY bucket_at DESC LIMIT {QUARTERS_MAX}
    ) AS newest
"""  # noqa: S608 - constants
