"""THE PATH: one call, from its first byte to its charge, told in order by one coroutine.

    identify -> read body -> quote -> hold -> open upstream -> relay and meter -> price -> charge -> last bytes

The coroutine waits for four things only: the hold, the upstream's head, its end, and the commit of
the charge; and for a key with limits to be counted, before the hold. The connection tells the call
when its client leaves (`client_gone`), the gateway when it must end (`stop`). Whatever happens, a
hold that was granted is resolved exactly once: charged, cancelled, or, if this process dies, left
behind as evidence for the sweeper.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

import msgspec
from typing_extensions import override

from billing.db.hot import DatabaseUnavailableError, EventConflictError
from billing.events import ChargeEvent, Finish, Revision, UsageNotes
from billing.failpoints import reach
from billing.holds import GuardUnavailableError, Refused
from billing.limits import Limited, LimitsUnavailableError
from billing.settlement.outbox import NotDurableError
from llm_gateway import clock, errors, identity
from llm_gateway.dialects import chat
from llm_gateway.front import ClientGoneError
from llm_gateway.hold_watch import HoldWatch
from llm_gateway.limit_headers import limit_headers
from llm_gateway.meter import StreamMeter
from llm_gateway.relay import AnswerTooLargeError, ErrorBody, JsonAnswer, StreamAnswer
from llm_gateway.upstream import Aborted, FirstByteTimeout, UpstreamError, UpstreamRequest
from llm_gateway.usage_cost import Bill, with_cost
from llm_gateway.verdict import NOTHING_DELIVERED, Answer, Ending, Verdict, judge, nothing
from pricing_rules.price import price
from pricing_rules.usage import Usage

if TYPE_CHECKING:
    from billing.context import BillingContext
    from billing.guard import Admitted
    from billing.keys import KeyInfo
    from billing.limits import TakeRequest
    from llm_gateway.front import Front, Headers
    from llm_gateway.gateway import Gateway
    from llm_gateway.identity import Caller
    from llm_gateway.quoting import Quote, Target
    from llm_gateway.tokens import Count
    from llm_gateway.upstream import Exchange

_TRY_NEXT: Final = frozenset((408, 429, 500, 502, 503, 504, 529))  # the next target may do better
_CUT_MESSAGES: Final = {
    "exhausted": "The credit of the account is used up.",
    "call_seconds_max": "The call took longer than this gateway allows.",
    "shutting_down": "The gateway is shutting down.",
}

_PASSED_HEADERS: Final = {
    b"content-type": b"content-type",
    b"openai-processing-ms": b"openai-processing-ms",
    b"openai-version": b"openai-version",
    b"x-request-id": b"x-upstream-request-id",
}
CHAT_PATH: Final = b"/chat/completions"
_COMMON_HEADERS: Final = ((b"content-type", b"application/json"), (b"user-agent", b"llm-gateway"))
_STREAM_HEADERS: Final = (*_COMMON_HEADERS, (b"accept", b"text/event-stream"))
_JSON_HEADERS: Final = (*_COMMON_HEADERS, (b"accept", b"application/json"))

_log = logging.getLogger(__name__)


class Call:
    """One call on one client connection."""

    def __init__(self, gateway: Gateway, client: Front, headers: Headers) -> None:
        self.started_at = clock.now_ms()
        self.event_id = clock.new_event_id(self.started_at)
        self.context: BillingContext | None = None
        self.verdict: Verdict | None = None
        self.outcome = ""
        self.status = 0
        self.streamed = False
        self.started = clock.monotonic()
        self.first_byte: float | None = None
        self.draining_since: float | None = None
        self.grant = 0  # micro-credits held
        self._gateway = gateway
        self._client = client
        self._headers = headers
        self._quote: Quote | None = None
        self._target: Target | None = None
        self.task: asyncio.Task[None] | None = None  # the one that runs this call
        self._sending = False  # the upstream's head is awaited
        self._exchange: Exchange | None = None
        self._stream: StreamAnswer | None = None
        self._watch: HoldWatch | None = None
        self._holds_credit = False
        self._taken: TakeRequest | None = None  # counted against the limits of its key
        self._limit_headers: tuple[tuple[bytes, bytes], ...] = ()
        self._tells_cost = False  # the client wants to know in the answer itself
        self._gone = False
        self._stopped = ""  # why the gateway ended the call
        self._paused = False  # the client reads too slowly
        self._awaits_credit = False
        self._admitted: Admitted | None = None
        self._input: Count | None = None  # our own count, made when first needed
        self._failed_attempts = 0

    # -- the path ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Answer the client and resolve the hold; never raises."""
        try:
            await self._answer()
        except ClientGoneError:
            await self._cancel("client_gone")
        except errors.GatewayError as error:
            await self._cancel(error.code)
            self._send_error(error)
        except NotDurableError:
            # The charge is written nowhere, so the client must not get the end of its answer. The
            # outbox keeps it and tries again; if this process dies before, the hold is still there,
            # and the account pays what the last heartbeat knew.
            self.outcome = "not_durable"
            self._client.drop()
        except Exception:  # noqa: BLE001 - a hold must be resolved whatever went wrong
            _log.exception("call %s failed", self.event_id)
            await self._fail()
        finally:
            if self._exchange is not None:
                self._exchange.abort()
            self._end_take(0)
            if self._client.call is self:
                self._client.drop()  # no answer was sent, and none will be: do not keep it waiting
            self._gateway.ended(self)

    async def _answer(self) -> None:
        caller = await self._identify()
        self._tells_cost = caller.include_cost
        request = chat.parse(await self._read_body())
        quote = self._gateway.quoter.quote(caller, request, self.event_id, self.started_at)
        if caller.key.has_limits:
            await self._take(caller.key, quote)
        await self._hold(quote)
        exchange = await self._open_upstream(quote)
        if _is_stream(exchange):
            await self._answer_stream(exchange, quote)
        else:
            await self._answer_json(exchange)

    async def _identify(self) -> Caller:
        self._gateway.check_admitting()
        try:
            return await identity.identify(self._headers, self._gateway.keys, self.started_at)
        except DatabaseUnavailableError:
            raise errors.DatabaseUnavailableError from None

    async def _read_body(self) -> bytes:
        if self._client.body is None:
            raise ClientGoneError
        self._client.send_continue()
        return await self._client.body

    async def _take(self, key: KeyInfo, quote: Quote) -> None:
        """Count the call against the limits of its key, for all processes together."""
        self.context = quote.context
        request = self._gateway.take_request(key, quote)
        try:
            answer = await self._gateway.limits.take(request)
        except LimitsUnavailableError:
            if self._gateway.config.guard.allow_micro_credits:
                self._gateway.metrics.limited("uncounted")
                return
            self._gateway.metrics.limited("unavailable")
            raise errors.LimitsUnavailableError from None
        self._limit_headers = limit_headers(answer)
        if isinstance(answer, Limited):
            self._gateway.metrics.limited(answer.kind)
            raise errors.KeyLimitedError(
                limit=answer.kind, value=answer.limit, retry_ms=answer.retry_ms
            )
        self._taken = request

    def _end_take(self, tokens: int) -> None:
        """The call ends for the limits of its key, once: with what it used, or as if it had not been."""
        taken, self._taken = self._taken, None
        if taken is None:
            return
        if self._admitted is None:
            self._limit_headers = ()
            self._gateway.limits.release(taken)
        else:
            self._gateway.limits.settle(taken, tokens)

    async def _hold(self, quote: Quote) -> None:
        """Set the worst-case price aside, or as much of it as the account has."""
        self._quote, self.context = quote, quote.context
        try:
            first = quote.targets[0]
            result = await self._gateway.guard.hold(quote.context, first.ceiling, first.bounds)
        except GuardUnavailableError:
            self._gateway.metrics.admission("guard_unavailable")
            raise errors.GuardUnavailableError from None
        if isinstance(result, Refused):
            self._gateway.metrics.admission(result.reason)
            raise _refusal(result)
        self._gateway.metrics.admission("admitted")
        self._admitted, self.grant = result, result.held
        self._holds_credit = True
        reach("after_reserve")
        self._check_wanted()

    def _check_wanted(self) -> None:
        """Raises ShuttingDownError or ClientGoneError if the call was ended while it waited."""
        if self._stopped:
            raise errors.ShuttingDownError
        if self._gone:
            raise ClientGoneError

    async def _open_upstream(self, quote: Quote) -> Exchange:
        """Send the request to the first target that takes it; returns with the head of a 2xx answer."""
        error: errors.GatewayError = errors.UpstreamFailedError()
        for number, target in enumerate(quote.targets):
            if number and not await self._falls_back(quote, target):
                continue
            self._target = target
            try:
                exchange = await self._send(target, quote)
                if not is_success(exchange):
                    exchange, error = await self._refused(target, quote, exchange)
            except UpstreamError as failure:
                error = self._failed(target, failure)
                if failure.sent and isinstance(failure, FirstByteTimeout):
                    raise error from failure  # it may still be at work: another would bill as well
                continue
            reach("after_upstream_head")
            if is_success(exchange):
                return exchange
            if exchange.status not in _TRY_NEXT:
                raise error
        raise error

    async def _answer_stream(self, exchange: Exchange, quote: Quote) -> None:
        """Pass the stream on while it is metered; its end is held back until it is paid for."""
        self.streamed = True
        self.status = exchange.status
        meter = StreamMeter(
            client_wants_usage=quote.request.include_usage is True,
            client_wants_cost=self._tells_cost,
            text_bytes_max=self._gateway.text_bytes_to_count(self._model_sent),
        )
        watch = self._watch = self._hold_watch(meter)
        stream = self._stream = StreamAnswer(self._client, meter, watch)
        self._client.start_stream(exchange.status, self._answer_headers(exchange))
        try:
            ending = await self._relay(exchange, stream)
        finally:
            if watch is not None:
                watch.end()
        if ending is Ending.BROKEN and meter.saw_done and not meter.error_event:
            ending = Ending.WHOLE  # how the connection ends behind [DONE] changes nothing
        verdict = self._judge_stream(stream, ending)
        await self._settle(verdict)
        self._client.end_stream(self._last_bytes(ending, meter, verdict))
        reach("after_last_bytes")

    async def _answer_json(self, exchange: Exchange) -> None:
        """Keep the answer until it is paid for. One that is cut short is free."""
        answer = JsonAnswer(self._gateway.json_budget)
        try:
            try:
                ending = await self._relay(exchange, answer)
            except AnswerTooLargeError:
                await self._settle(
                    self._judge(
                        answer.describe(Ending.BROKEN, self._gateway.tokens, self._model_sent)
                    )
                )
                raise _billed("The provider's answer is too large to pass on.") from None
            if ending is Ending.BROKEN:
                raise _billed("The provider's answer broke off.")
            if ending is Ending.CUT:
                raise _billed(_CUT_MESSAGES.get(self._stopped, "The call was ended."))
            verdict = self._judge(answer.describe(ending, self._gateway.tokens, self._model_sent))
            await self._settle(verdict)
            if ending is Ending.WHOLE:
                self.status = exchange.status
                headers = self._answer_headers(exchange)
                headers += self._charge_headers(verdict)
                body = answer.body
                if self._tells_cost:
                    body = with_cost(body, bill_of(verdict))
                self._client.send_answer(exchange.status, headers, body)
                reach("after_last_bytes")
        finally:
            answer.release()

    async def _relay(self, exchange: Exchange, answer: StreamAnswer | JsonAnswer) -> Ending:
        """Let the body pass until it ends; says how it ended."""
        if self._paused:
            exchange.pause()
        try:
            await exchange.relay(answer.on_data)
        except Aborted:
            return Ending.CUT if self._stopped else Ending.CLIENT_GONE
        except UpstreamError as failure:
            self._note_failure(failure)
            return Ending.BROKEN
        finally:
            self.first_byte = answer.first_byte
        self._exchange = None
        reach("after_upstream_end")
        return Ending.WHOLE

    async def _settle(self, verdict: Verdict) -> None:
        """Make the charge durable, or the decision that there is none; raises NotDurableError."""
        if verdict.cancelled:
            await self._cancel(verdict.reason)
            return
        self.verdict = verdict
        self.outcome = "charged"
        self._holds_credit = False
        self._end_take(verdict.usage.total)  # beside the commit: before the client can ask again
        reach("before_commit")
        await self._gateway.outbox.write(self._finish(verdict))
        reach("after_commit")

    async def _cancel(self, reason: str) -> None:
        """Nothing is charged: note why and give the hold back; harmless where nothing is held."""
        self.outcome = self.outcome or reason
        self._end_take(0)
        if not self._holds_credit:
            return
        self.verdict = nothing(reason)
        self._holds_credit = False
        try:
            await self._gateway.outbox.write(self._finish(self.verdict))
        except (NotDurableError, EventConflictError):
            _log.critical("call %s: its hold could not be given back", self.event_id)

    async def _fail(self) -> None:
        """A fault of our own: the account pays for what was delivered, and for nothing else.

        What is faulty may be what tells how much that is; then nobody pays. Never raises.
        """
        if self._stream is None:
            await self._cancel("internal_error")
            self._send_error(errors.InternalError(may_have_billed=self._exchange is not None))
            return
        try:
            if self._holds_credit:
                await self._settle(self._judge_stream(self._stream, Ending.BROKEN))
        except NotDurableError:
            self.outcome = "not_durable"
        except Exception:  # noqa: BLE001 - a hold must be resolved whatever went wrong
            _log.exception("call %s: what it delivered cannot be told", self.event_id)
        await self._cancel("internal_error")
        self._client.drop()

    # -- to the upstream ---------------------------------------------------------------------

    async def _falls_back(self, quote: Quote, target: Target) -> bool:
        """Whether the next target may be tried: the hold is raised to what that one may cost."""
        assert self._admitted is not None
        if self._gone or self._stopped:
            return False
        context = msgspec.structs.replace(
            quote.context,
            provider=target.route.provider.name,
            model_sent=target.route.model_sent,
            rule=target.rule.id,
        )
        try:
            result = await self._gateway.guard.raise_hold(
                context, target.ceiling, target.bounds, self._admitted
            )
        except GuardUnavailableError:
            return False
        if isinstance(result, Refused):
            return False
        self.context, self._admitted, self.grant = context, result, result.held
        self._failed_attempts += 1
        return True

    async def _send(self, target: Target, quote: Quote, *, ask_usage: bool = True) -> Exchange:
        """Send the request and wait for a head; raises UpstreamError, ClientGoneError if ended meanwhile."""
        provider = target.route.provider
        assert self._admitted is not None
        self._check_wanted()
        body = chat.rewrite(
            quote.request,
            model=target.route.model_sent,
            limit=self._admitted.limit,
            limit_field=provider.output_limit_field,
            ask_usage=ask_usage and self._gateway.asks_usage(target),
        )
        headers = _STREAM_HEADERS if quote.request.stream else _JSON_HEADERS
        message = UpstreamRequest(path=CHAT_PATH, headers=headers, body=body)
        self._sending = True
        try:
            self._exchange = await self._gateway.upstreams[provider.name].send(message)
        except asyncio.CancelledError:
            if self.task is None or not (self._gone or self._stopped):
                raise
            self.task.uncancel()
            self._sending = False  # what follows is not to be cancelled again
            await self._abandon()
            raise ClientGoneError from None
        finally:
            self._sending = False
        return self._exchange

    async def _abandon(self) -> None:
        """The call ended with its request at the provider and no byte of an answer.

        Left by the client (policy `stop`), the account pays the input: the provider bills it.
        Ended by us, nobody pays.
        """
        if self._stopped:
            await self._cancel(self._stopped)
            self._send_error(errors.ShuttingDownError())
        else:
            await self._settle(self._judge(NOTHING_DELIVERED))

    def _failed(self, target: Target, failure: UpstreamError) -> errors.GatewayError:
        """What the client hears of an attempt that brought no head."""
        self._note_failure(failure)
        if isinstance(failure, FirstByteTimeout):
            return errors.UpstreamTimeoutError(may_have_billed=failure.sent)
        name = target.route.provider.name
        return errors.UpstreamFailedError(
            f"The provider {name} could not be reached.", may_have_billed=failure.sent
        )

    def _note_failure(self, failure: UpstreamError) -> None:
        assert self._target is not None
        provider = self._target.route.provider.name
        self._gateway.metrics.upstream_error(provider, type(failure).__name__)
        _log.warning("call %s: provider %s: %s", self.event_id, provider, failure)

    async def _refused(
        self, target: Target, quote: Quote, exchange: Exchange
    ) -> tuple[Exchange, errors.GatewayError]:
        """What the client hears of a provider's error answer.

        A provider that only minds being asked for usage is asked once more, without, and remembered
        if that was it. Not so where the client sent stream options of its own: one request with a
        wrong option would end the reports for everybody.
        """
        provider = target.route.provider.name
        body = await self._read_error(exchange)
        if (
            exchange.status == 400
            and quote.request.stream
            and not quote.request.other_stream_options
            and b"stream_options" in body
            and self._gateway.asks_usage(target)
        ):
            exchange = await self._send(target, quote, ask_usage=False)
            if is_success(exchange):
                self._gateway.ask_usage_no_more(target)
                return exchange, errors.UpstreamFailedError()
            body = await self._read_error(exchange)
        self._gateway.metrics.upstream_error(provider, f"status_{exchange.status}")
        _log.warning("call %s: provider %s answered %d", self.event_id, provider, exchange.status)
        said = errors.wrap_upstream_error(exchange.status, exchange.headers, body)
        if isinstance(said, bytes):
            return exchange, PassedOnError(exchange.status, said)
        return exchange, said

    async def _read_error(self, exchange: Exchange) -> bytes:
        body = ErrorBody()
        try:
            await exchange.relay(body.on_data)
        except (UpstreamError, AnswerTooLargeError):
            exchange.abort()
        self._exchange = None
        return body.body

    # -- the end of the answer ---------------------------------------------------------------

    def _judge_stream(self, stream: StreamAnswer, ending: Ending) -> Verdict:
        meter = stream.meter
        if ending is Ending.WHOLE:
            meter.end()
        if ending is Ending.WHOLE and meter.error_event:
            ending = Ending.BROKEN
        if ending is Ending.BROKEN and meter.reported is None and not meter.has_content:
            return nothing("failed_before_first_byte")
        return self._judge(stream.describe(ending, self._gateway.tokens, self._model_sent))

    @property
    def _model_sent(self) -> str:
        return self._target.route.model_sent if self._target is not None else ""

    def _judge(self, answer: Answer) -> Verdict:
        assert self._target is not None
        return judge(
            answer,
            rule=self._target.rule,
            factors=self._target.factors,
            grant=self.grant,
            count_input=self._count_input,
            policy=self._gateway.policy,
            lent=0 if self._watch is None else self._watch.lent,
        )

    def _last_bytes(self, ending: Ending, meter: StreamMeter, verdict: Verdict) -> bytes:
        if self._tells_cost:
            meter.bill = bill_of(verdict)
        match ending:
            case Ending.WHOLE:
                return meter.finish()
            case Ending.CUT:
                return meter.cut(verdict.usage)
            case Ending.BROKEN:
                return meter.error_chunk(_billed("The provider's answer broke off.").envelope())
            case Ending.CLIENT_GONE:
                return b""

    def _finish(self, verdict: Verdict) -> Finish:
        assert self.context is not None
        return Finish(
            event=ChargeEvent(
                revision=Revision.FINAL,
                context=self.context,
                usage=verdict.usage,
                quality=verdict.quality,
                usage_source=verdict.source,
                amount=verdict.amount,
                ceiling=self.grant,
                finished_at=clock.now_ms(),
            ),
            notes=UsageNotes(
                reason=verdict.reason,
                raw_usage=verdict.raw_usage,
                failed_attempts=self._failed_attempts,
            ),
            cancelled=verdict.cancelled,
        )

    def _answer_headers(self, exchange: Exchange) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-request-id", self.event_id.encode())]
        for name, value in exchange.headers:
            if shown := _PASSED_HEADERS.get(name):
                headers.append((shown, value))
        headers += self._limit_headers
        if self.streamed:
            headers.append((b"cache-control", b"no-cache"))
        if self._admitted is not None and self._admitted.clamped:
            headers.append((b"x-max-tokens-clamped", b"%d" % (self._admitted.limit or 0)))
        return headers

    def _charge_headers(self, verdict: Verdict) -> list[tuple[bytes, bytes]]:
        assert self._target is not None
        return [
            (b"x-charged-micro-credits", b"%d" % verdict.amount),
            (b"x-price-rule", self._target.rule.id.encode("ascii", "replace")),
        ]

    def _send_error(self, error: errors.GatewayError) -> None:
        """Answer with an error, or, inside a stream, end it with one."""
        if self._gone:
            return
        if self._stream is not None:
            self._client.end_stream(self._stream.meter.error_chunk(error.envelope()))
            return
        self.status = error.status
        headers = [
            (b"content-type", b"application/json"),
            (b"x-request-id", self.event_id.encode()),
        ]
        headers += self._limit_headers
        headers += [(name.encode(), value.encode()) for name, value in error.headers.items()]
        self._client.send_answer(error.status, headers, error.envelope())

    # -- what the connection and the gateway tell the call -----------------------------------

    def client_gone(self) -> None:
        """The client left: read on to the usage, or stop, as the scene or the provider says."""
        if self._gone:
            return
        self._gone = True
        self.resume()
        if self._target is None:
            return  # nothing was sent: the path finds out by itself
        if self._gateway.drains(self._target) and self._gateway.begin_drain():
            self.draining_since = clock.monotonic()
        else:
            self._end()

    def stop(self, reason: str) -> None:
        """End the call now; a stream gets a proper last chunk and is charged as far as it went."""
        if not self._stopped:
            self._stopped = reason
            self._end()

    def stop_draining(self) -> None:
        """The usage takes too long to come, and nobody waits for the answer: charge what is known."""
        self._end()

    def pause(self) -> None:
        """The client reads too slowly: read no more from the upstream."""
        if not self._gone:
            self._paused = True
            if self._exchange is not None:
                self._exchange.pause()

    def resume(self) -> None:
        """The client has caught up, or has left."""
        self._paused = False
        if self._exchange is not None and not self._awaits_credit:
            self._exchange.resume()

    def await_credit(self) -> None:
        """The hold is used up and more was asked for: read no more before the answer."""
        self._awaits_credit = True
        if self._exchange is not None:
            self._exchange.pause()

    def go_on(self) -> None:
        """There is credit again."""
        self._awaits_credit = False
        if self._exchange is not None and not self._paused:
            self._exchange.resume()

    def _end(self) -> None:
        if self._exchange is not None:
            self._exchange.abort()
        elif self._sending and self.task is not None:
            self.task.cancel()
        elif self._client.call is self and (body := self._client.body) and not body.done():
            body.set_exception(errors.ShuttingDownError())

    # -- what it costs while it runs ---------------------------------------------------------

    def progress(self) -> int:
        """What the stream has cost so far, in micro-credits, as well as can be told."""
        if self._target is None or self._stream is None:
            return 0
        delivered = self._gateway.tokens.estimate(self._stream.meter.delivered)
        usage = Usage(input=self._count_input().tokens, output=delivered)
        return price(self._target.rule, usage, factors=self._target.factors)

    def _count_input(self) -> Count:
        assert self._target is not None
        assert self._quote is not None
        if self._input is None:
            self._input = self._gateway.quoter.count_input(self._quote.request, self._target)
        return self._input

    def _hold_watch(self, meter: StreamMeter) -> HoldWatch | None:
        """Where the provider keeps to the limit it was sent, the hold cannot prove too small."""
        assert self._target is not None
        if self._target.route.provider.enforces_output_limit:
            return None
        return HoldWatch(self, meter, self._gateway.holds, self._gateway.scene(self._target.scene))


class PassedOnError(errors.GatewayError):
    """The provider found the request wrong in OpenAI's own words: they reach the client unchanged."""

    code = "upstream_rejected"

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the provider answered {status}")
        self.status = status
        self._body = body

    @override
    def envelope(self) -> bytes:
        """The provider's body."""
        return self._body


def bill_of(verdict: Verdict) -> Bill:
    """What the client is told of its charge."""
    return Bill(micro_credits=verdict.amount, usage=verdict.usage)


def is_success(exchange: Exchange) -> bool:
    """Whether the provider took the request."""
    return 200 <= exchange.status < 300


def _is_stream(exchange: Exchange) -> bool:
    for name, value in exchange.headers:
        if name == b"content-type":
            return value.lstrip().lower().startswith(b"text/event-stream")
    return False


def _refusal(refused: Refused) -> errors.GatewayError:
    match refused.reason:
        case "suspended":
            return errors.AccountSuspendedError()
        case "held":
            return errors.CreditHeldError(
                balance=refused.balance, held=refused.held, needed=refused.needed
            )
        case "insufficient":
            return errors.InsufficientCreditError(
                balance=refused.balance, held=refused.held, needed=refused.needed
            )


def _billed(message: str) -> errors.UpstreamFailedError:
    return errors.UpstreamFailedError(message, may_have_billed=True)
