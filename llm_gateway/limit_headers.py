"""How the limits of a key stand, in the headers that OpenAI's clients know."""

from billing.limits import Allowed, Limited, Standing
from llm_gateway.errors import format_reset

Headers = tuple[tuple[bytes, bytes], ...]


def limit_headers(answer: Allowed | Limited) -> Headers:
    """x-ratelimit-{limit,remaining,reset}-{requests,tokens}, of the limits that the key has.

    https://platform.openai.com/docs/guides/rate-limits#rate-limits-in-headers
    """
    return _of(b"requests", answer.requests) + _of(b"tokens", answer.tokens)


def _of(kind: bytes, standing: Standing | None) -> Headers:
    if standing is None:
        return ()
    return (
        (b"x-ratelimit-limit-" + kind, b"%d" % standing.limit),
        (b"x-ratelimit-remaining-" + kind, b"%d" % standing.remaining),
        (b"x-ratelimit-reset-" + kind, format_reset(standing.reset_ms).encode()),
    )
