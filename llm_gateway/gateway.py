"""The gateway of one process: what every call needs, the calls now running, and the tick that minds them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from billing.holds import GuardUnavailableError, HoldBeat
from billing.limits import Limits, TakeRequest
from billing.limits.bucket import effective
from llm_gateway import clock, errors
from llm_gateway.call import Call
from llm_gateway.config import SceneConfig
from llm_gateway.logs import describe_call
from llm_gateway.quoting import Quoter
from llm_gateway.relay import JsonBudget
from llm_gateway.tokens import COUNTED_BYTES_MAX
from llm_gateway.verdict import Policy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from billing.backlog import Figures
    from billing.books import PriceBooks
    from billing.guard import CreditBalanceGuard
    from billing.holds import HoldStore
    from billing.keys import KeyInfo, Keys
    from billing.limits import LimitStore
    from billing.settlement.outbox import Outbox
    from llm_gateway.config import Config
    from llm_gateway.front import Front, Headers
    from llm_gateway.logs import LineWriter
    from llm_gateway.metrics import Metrics
    from llm_gateway.quoting import Quote, Target
    from llm_gateway.tokens import TokenCounter
    from llm_gateway.upstream import Upstream

CHAT_COMPLETIONS: Final = b"/v1/chat/completions"
JSON_ANSWERS_BYTES_MAX: Final = 256 * 1024 * 1024  # of all buffered JSON answers together
DRAINS_MAX: Final = 64  # abandoned streams that are read on at once
DRAIN_SECONDS_MAX: Final = 120.0
HEARTBEAT_SECONDS: Final = 2.0
BYTES_PER_TOKEN: Final = 4  # of input, for limits: what is wrong about it is put right at the end

_log = logging.getLogger(__name__)


class Gateway:
    """Holds what calls share. Made once by app.py."""

    def __init__(  # noqa: PLR0913 - its parts, each by name
        self,
        *,
        config: Config,
        keys: Keys,
        books: PriceBooks,
        holds: HoldStore,
        guard: CreditBalanceGuard,
        limits: LimitStore,
        outbox: Outbox,
        upstreams: Mapping[str, Upstream],
        tokens: TokenCounter,
        metrics: Metrics,
        log: LineWriter,
        is_alive: Callable[[], bool] | None = None,
    ) -> None:
        self.config = config
        self.keys = keys
        self.books = books
        self.holds = holds
        self.guard = guard
        self.limits = limits
        self.outbox = outbox
        self.upstreams = upstreams
        self.tokens = tokens
        self.metrics = metrics
        self.quoter = Quoter(config, books, tokens)
        self._log = log
        self._is_alive = is_alive  # None: nobody else can take this process for dead
        self.policy = Policy(
            no_usage=config.pricing.no_usage, empty_answer=config.pricing.empty_answer
        )
        self.json_budget = JsonBudget(JSON_ANSWERS_BYTES_MAX)
        self.body_bytes_max = config.server.body_bytes_max
        self.stopping = False
        self.calls: set[Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._scenes = {scene.name: scene for scene in config.scenes}
        self._beats: dict[str, int] = {}
        self._draining = 0
        # Provider and model pairs that answer 400 to stream_options.
        self._mind_usage_option: set[tuple[str, str]] = set()

    # -- what connections ask ----------------------------------------------------------------

    def is_hot(self, path: bytes) -> bool:
        """Whether a request is a call, to be answered on the data plane."""
        return path == CHAT_COMPLETIONS

    def start(self, client: Front, headers: Headers) -> Call:
        """Begin a call; it runs by itself."""
        call = Call(self, client, headers)
        self.calls.add(call)
        task = call.task = client.loop.create_task(call.run())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return call

    # -- what calls ask ----------------------------------------------------------------------

    def check_admitting(self) -> None:
        """Raises ShuttingDownError or DatabaseUnavailableError while no call may begin."""
        if self.stopping:
            raise errors.ShuttingDownError
        if not self.outbox.durable:
            raise errors.DatabaseUnavailableError
        if self._is_alive is not None and not self._is_alive():
            raise errors.DatabaseUnavailableError  # the registry could not be told that we live

    def take_request(self, key: KeyInfo, quote: Quote) -> TakeRequest:
        """What a call asks of the limits of its key: its input, about, and the output it may have."""
        bounds, sent = quote.targets[0].bounds, quote.request.input_bytes
        per_choice = bounds.model_max_output if bounds.client_limit is None else bounds.client_limit
        tokens = (
            bounds.input_tokens - sent  # images and the like
            + -(-sent // BYTES_PER_TOKEN)
            + bounds.choices * per_choice
        )  # fmt: skip
        limits = Limits(
            requests=key.requests_per_minute,
            tokens=key.tokens_per_minute,
            calls=key.concurrent_calls,
        )
        return TakeRequest(
            key_id=key.key_id,
            event_id=quote.context.event_id,
            limits=effective(limits),
            tokens=tokens,
            process=self.guard.process,
        )

    def scene(self, name: str) -> SceneConfig:
        """The settings of a scene; the defaults if the file does not name it."""
        return self._scenes.get(name) or SceneConfig(name=name)

    def text_bytes_to_count(self, model: str) -> int:
        """How much text of an answer to keep for counting; 0 where bytes are all there is to go by."""
        return COUNTED_BYTES_MAX if self.tokens.can_count(model) else 0

    def asks_usage(self, target: Target) -> bool:
        """Whether a provider is asked to report usage at the end of a stream."""
        minding = self._mind_usage_option
        return not minding or (target.route.provider.name, target.route.model_sent) not in minding

    def ask_usage_no_more(self, target: Target) -> None:
        """Remember, until the next start, that a provider refuses to be asked of this model."""
        self._mind_usage_option.add((target.route.provider.name, target.route.model_sent))
        _log.warning(
            "provider %s refuses stream_options for %s: its streams are estimated from now on",
            target.route.provider.name,
            target.route.model_sent,
        )

    def drains(self, target: Target) -> bool:
        """Whether an answer is read on to its usage when the client has left."""
        policy = self.scene(target.scene).on_client_gone or target.route.provider.on_client_gone
        return policy == "drain"

    def begin_drain(self) -> bool:
        """Take one of the places for abandoned streams; False if all are taken."""
        if self._draining >= DRAINS_MAX:
            return False
        self._draining += 1
        return True

    def ended(self, call: Call) -> None:
        """A call is over, one way or the other."""
        self.calls.discard(call)
        self._beats.pop(call.event_id, None)
        if call.draining_since is not None:
            self._draining -= 1
        seconds = clock.monotonic() - call.started
        self.metrics.call_ended(call, seconds)
        self._log.call(describe_call(call, clock.now_ms(), int(seconds * 1000)))

    # -- the tick ----------------------------------------------------------------------------

    async def heartbeat(self) -> None:
        """Note what running streams have cost so far, so that a crash leaves evidence of it."""
        beats = []
        for call in self.calls:
            spent = min(self._progress(call), call.grant)
            if spent and self._beats.get(call.event_id) != spent:
                self._beats[call.event_id] = spent
                beats.append(HoldBeat(call.event_id, call.grant, spent))
        if beats:
            try:
                await self.holds.heartbeat(beats)
            except GuardUnavailableError:
                self._beats.clear()
                _log.warning("the progress of %d calls could not be noted", len(beats))

    @staticmethod
    def _progress(call: Call) -> int:
        try:
            return call.progress()
        except Exception:  # noqa: BLE001 - one call's fault must not cost the others their evidence
            _log.exception("the progress of call %s cannot be told", call.event_id)
            return 0

    def end_overdue(self) -> None:
        """End calls that run longer than allowed, and drains that take too long."""
        now = clock.monotonic()
        for call in list(self.calls):
            if now - call.started > self.config.guard.call_seconds_max:
                call.stop("call_seconds_max")
            elif call.draining_since is not None and now - call.draining_since > DRAIN_SECONDS_MAX:
                call.stop_draining()

    def update_gauges(self, figures: Figures) -> None:
        """Figures that /metrics shows and nobody counts as they change."""
        oldest = figures.oldest_unsettled_at
        age_ms = 0 if oldest is None else max(0, clock.now_ms() - oldest)
        self.metrics.held_micro_credits = figures.held
        self.metrics.unsettled_events = figures.unsettled
        self.metrics.unsettled_age_seconds = age_ms / 1000
        self.metrics.quarantined_events = figures.quarantined
        self.metrics.open_streams = sum(call.streamed for call in self.calls)
        self.metrics.spool_bytes = self.outbox.spool_bytes()

    # -- the end -----------------------------------------------------------------------------

    async def finish_calls(self, seconds: float) -> None:
        """Let running calls end by themselves for a while, then end them; returns when none is left."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        self.end_all("shutting_down")
        while self._tasks:
            await asyncio.wait(self._tasks)

    def end_all(self, reason: str) -> None:
        """End the calls that still run."""
        for call in list(self.calls):
            call.stop(reason)
