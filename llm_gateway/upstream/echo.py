"""EchoUpstream: a provider that answers offline, and always the same to the same question."""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final
from weakref import WeakSet

import msgspec

from llm_gateway.config import ProviderConfig
from llm_gateway.upstream import Aborted, UpstreamRequest, UpstreamStats

# OpenAI caches prompts from 1,024 tokens on, in steps of 128; here they are small, to be seen.
CACHE_STEP_TOKENS: Final = 64
CACHE_PREFIXES_MAX: Final = 4096
ANSWER_TOKENS_MAX: Final = 200_000
CHOICES_MAX: Final = 128
BYTES_PER_TOKEN: Final = 4
# Without a pace a stream still gives the loop a turn after so many events.
BURST_EVENTS: Final = 32

_CREATED: Final = 1_700_000_000  # no clock in an answer: the same question, the same bytes
_FILLER: Final = re.findall(
    r"\S+",
    "Nothing was sent to any provider : this answer was made on this machine , "
    "one word a token , until it is as long as it should be .",
)
_THOUGHTS: Final = re.findall(r"\S+", "Let me see : I only have to say the same again .")
_WORD: Final = re.compile(r"\s*\S+")
_JSON: Final = [(b"content-type", b"application/json")]
_SSE: Final = [(b"content-type", b"text/event-stream; charset=utf-8")]
_CALL: Final = re.compile(r"call the tool ([A-Za-z0-9_-]{1,64})")


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    role: str = ""
    content: str | list[_Part] | None = None

    def text(self) -> str:
        """The text parts in one."""
        if isinstance(self.content, str):
            return self.content
        return " ".join(part.text or "" for part in self.content or ())


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _Function(msgspec.Struct):
    name: str = ""


class _Tool(msgspec.Struct):
    function: _Function = msgspec.field(default_factory=_Function)


class _Question(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    tools: list[_Tool] | None = None

    @property
    def choices(self) -> int:
        return 1 if self.n is None else self.n

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def limit(self) -> int | None:
        """The smaller of the two limits in tokens, None without any."""
        limits = [x for x in (self.max_tokens, self.max_completion_tokens) if x is not None]
        return min(limits, default=None)


class _Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What each choice of an answer says; one item is one token."""

    thoughts: list[str]
    words: list[str]
    tool: str
    finish_reason: str

    @property
    def tokens(self) -> int:
        return len(self.thoughts) + len(self.words)


class PrefixCache:
    """Which beginnings of prompts were seen lately; hashes alone, the oldest forgotten first."""

    def __init__(self, prefixes_max: int = CACHE_PREFIXES_MAX) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._prefixes_max = prefixes_max

    def look(self, prompt: bytes) -> int:
        """The tokens of the longest beginning that was seen; remembers this prompt's."""
        step = CACHE_STEP_TOKENS * BYTES_PER_TOKEN
        digest = hashlib.blake2b(digest_size=16)
        cached, unbroken = 0, True
        for at in range(0, len(prompt) - len(prompt) % step, step):
            digest.update(prompt[at : at + step])
            prefix = digest.digest()
            unbroken = unbroken and prefix in self._seen
            if unbroken:
                cached += CACHE_STEP_TOKENS
            self._seen[prefix] = None
            self._seen.move_to_end(prefix)
        while len(self._seen) > self._prefixes_max:
            self._seen.popitem(last=False)
        return cached


class EchoExchange:
    """An answer whose pieces come by themselves, at a pace, from one timer."""

    def __init__(
        self,
        status: int,
        headers: list[tuple[bytes, bytes]],
        pieces: Iterator[bytes],
        *,
        seconds_per_piece: float,
    ) -> None:
        self.status = status
        self.headers = list(headers)
        self._pieces = pieces
        self._seconds = seconds_per_piece
        self._loop = asyncio.get_running_loop()
        self._on_data: Callable[[bytes], None] | None = None
        self._end: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._next_at = 0.0
        self._paused = False
        self._done = False
        self._aborted = False

    @property
    def done(self) -> bool:
        """Whether nothing more will come."""
        return self._done

    async def relay(self, on_data: Callable[[bytes], None]) -> None:
        """Hand over the body. See llm_gateway.upstream.Exchange."""
        if self._on_data is not None:
            raise RuntimeError("relay() was called before")
        self._on_data = on_data
        if self._aborted:
            raise Aborted("the exchange was aborted")
        self._end = self._loop.create_future()
        self._next_at = self._loop.time() + self._seconds
        try:
            if not self._paused:
                self._schedule()
            await self._end
        finally:
            self._stop()

    def pause(self) -> None:
        """Make nothing more for now."""
        self._paused = True
        self._cancel_timer()

    def resume(self) -> None:
        """Go on, at the pace from here: what was missed is not made up for."""
        if not self._paused:
            return
        self._paused = False
        if self._end is not None and not self._done:
            self._next_at = self._loop.time() + self._seconds
            self._schedule()

    def abort(self) -> None:
        """End now."""
        if self._done:
            return
        self._aborted = True
        self._finish(Aborted("the exchange was aborted"))

    def _schedule(self) -> None:
        if self._seconds > 0:
            self._timer = self._loop.call_at(self._next_at, self._tick)
        else:
            self._timer = self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            for _ in range(1 if self._seconds > 0 else BURST_EVENTS):
                if not self._hand_over():
                    return
        except BaseException as error:
            self._finish(error)
            if not isinstance(error, Exception):
                raise
            return
        self._next_at += self._seconds
        self._schedule()

    def _hand_over(self) -> bool:
        """One piece; whether there may be another now."""
        piece = next(self._pieces, None)
        if piece is None:
            self._finish(None)
            return False
        assert self._on_data is not None
        self._on_data(piece)
        return not (self._paused or self._done)

    def _finish(self, error: BaseException | None) -> None:
        self._stop()
        end = self._end
        if end is None or end.done():
            return
        if error is None:
            end.set_result(None)
        else:
            end.set_exception(error)

    def _stop(self) -> None:
        self._done = True
        self._cancel_timer()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class EchoUpstream:
    """Says the last user message again, then fills up to `answer_tokens`.

    "call the tool NAME" in that message answers a call of the tool, if it was offered. A model
    whose name ends in -reasoning thinks first. Only the prompt's tokens are an estimate.
    """

    def __init__(self, provider: ProviderConfig) -> None:
        self._provider = provider
        self._cache = PrefixCache()
        self._exchanges: WeakSet[EchoExchange] = WeakSet()
        self._closed = False
        self._sent_total = 0

    async def send(self, request: UpstreamRequest) -> EchoExchange:
        """Answer the request. Raises Aborted after close()."""
        if self._closed:
            raise Aborted("the upstream was closed", sent=False)
        self._sent_total += 1
        exchange = self._answer(request)
        self._exchanges.add(exchange)
        return exchange

    async def close(self) -> None:
        """End what is under way with Aborted."""
        self._closed = True
        for exchange in list(self._exchanges):
            exchange.abort()

    def stats(self) -> UpstreamStats:
        """Answers under way count as connections."""
        running = sum(not exchange.done for exchange in self._exchanges)
        return UpstreamStats(open=running, opened_total=self._sent_total)

    def _answer(self, request: UpstreamRequest) -> EchoExchange:
        if not request.path.endswith(b"/chat/completions"):
            return _refusal(404, "echo only knows /chat/completions")
        try:
            question = _decoder.decode(request.body)
        except msgspec.MsgspecError:
            return _refusal(400, "the body is no chat request")
        wrong = _wrong(question)
        if wrong:
            return _refusal(400, wrong)
        provider = self._provider
        plan = _plan(question, provider.answer_tokens)
        usage = _usage(question, plan, self._cache)
        writer = _Writer(question, plan, usage, hashlib.sha256(request.body).hexdigest())
        pace = provider.tokens_per_second
        if not question.stream:
            seconds = plan.tokens / pace if pace > 0 else 0.0
            return EchoExchange(200, _JSON, iter([writer.json()]), seconds_per_piece=seconds)
        step = max(provider.chunk_tokens, 1)
        seconds = step / pace if pace > 0 else 0.0
        return EchoExchange(200, _SSE, writer.events(step), seconds_per_piece=seconds)


class _Writer:
    """Pure: a plan in OpenAI's wire format."""

    def __init__(
        self, question: _Question, plan: _Plan, usage: dict[str, object], digest: str
    ) -> None:
        self._question = question
        self._plan = plan
        self._usage = usage
        self._id = f"chatcmpl-{digest[:24]}"
        self._call_id = f"call_{digest[:24]}"

    def json(self) -> bytes:
        """The answer in one."""
        plan = self._plan
        text = "".join(plan.words)
        message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
        if plan.thoughts:
            message["reasoning_content"] = "".join(plan.thoughts)
        if plan.tool:
            message["content"] = None
            message["tool_calls"] = [self._call(text)]
        choices: list[dict[str, object]] = [
            {"index": i, "message": message, "logprobs": None, "finish_reason": plan.finish_reason}
            for i in range(self._question.choices)
        ]
        answer = self._envelope("chat.completion", choices)
        answer["usage"] = self._usage
        return msgspec.json.encode(answer)

    def events(self, step: int) -> Iterator[bytes]:
        """The answer as server-sent events; `step` tokens of every choice a piece."""
        plan = self._plan
        yield self._to_all({"role": "assistant", "content": None if plan.tool else ""})
        for at in range(0, len(plan.thoughts), step):
            thought = "".join(plan.thoughts[at : at + step])
            yield self._to_all({"reasoning_content": thought})
        if plan.tool:
            yield self._to_all({"tool_calls": [{"index": 0, **self._call("")}]})
        for at in range(0, len(plan.words), step):
            text = "".join(plan.words[at : at + step])
            if plan.tool:
                yield self._to_all({"tool_calls": [{"index": 0, "function": {"arguments": text}}]})
            else:
                yield self._to_all({"content": text})
        yield self._to_all({}, plan.finish_reason) + self._last()

    def _call(self, arguments: str) -> dict[str, object]:
        function = {"name": self._plan.tool, "arguments": arguments}
        return {"id": self._call_id, "type": "function", "function": function}

    def _to_all(self, delta: dict[str, object], finish_reason: str | None = None) -> bytes:
        return b"".join(
            self._event(
                [{"index": i, "delta": delta, "logprobs": None, "finish_reason": finish_reason}]
            )
            for i in range(self._question.choices)
        )

    def _last(self) -> bytes:
        if not self._question.wants_usage:
            return b"data: [DONE]\n\n"
        return self._event([], self._usage) + b"data: [DONE]\n\n"

    def _event(
        self, choices: list[dict[str, object]], usage: dict[str, object] | None = None
    ) -> bytes:
        event = self._envelope("chat.completion.chunk", choices)
        if self._question.wants_usage:
            event["usage"] = usage
        return b"data: %b\n\n" % msgspec.json.encode(event)

    def _envelope(self, kind: str, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self._id,
            "object": kind,
            "created": _CREATED,
            "model": self._question.model,
            "choices": choices,
        }


def _wrong(question: _Question) -> str:
    """What makes a question one that no answer can be given to, "" if nothing does."""
    if not question.messages:
        return "messages is empty"
    if not 1 <= question.choices <= CHOICES_MAX:
        return f"n must be 1 to {CHOICES_MAX}"
    if question.limit is not None and question.limit < 1:
        return "the limit of the answer must be at least 1 token"
    return ""


def _plan(question: _Question, answer_tokens: int) -> _Plan:
    text = _last_user_text(question)
    length = min(max(answer_tokens, 1), ANSWER_TOKENS_MAX)
    tool = _tool_asked_for(question, text)
    if tool:
        arguments = msgspec.json.encode({"text": text[:200]}).decode()
        words = [arguments[at : at + 4] for at in range(0, len(arguments), 4)]
    else:
        words = _WORD.findall(text)[:length]
        words += [f" {_FILLER[i % len(_FILLER)]}" for i in range(length - len(words))]
    thoughts: list[str] = []
    if question.model.endswith("-reasoning"):
        count = max(length // 2, 1)
        thoughts = [f"{_THOUGHTS[i % len(_THOUGHTS)]} " for i in range(count)]
    reason = "tool_calls" if tool else "stop"
    limit = question.limit
    if limit is not None and limit < len(thoughts) + len(words):
        reason = "length"
        thoughts = thoughts[:limit]
        words = words[: limit - len(thoughts)]
    return _Plan(thoughts=thoughts, words=words, tool=tool, finish_reason=reason)


def _last_user_text(question: _Question) -> str:
    for message in reversed(question.messages):
        if message.role == "user":
            return message.text()
    return ""


def _tool_asked_for(question: _Question, text: str) -> str:
    asked = _CALL.search(text)
    offered = {tool.function.name for tool in question.tools or ()}
    return asked[1] if asked is not None and asked[1] in offered else ""


def _usage(question: _Question, plan: _Plan, cache: PrefixCache) -> dict[str, object]:
    """As OpenAI reports it: prompt includes cached, completion includes reasoning."""
    offered = [tool.function.name for tool in question.tools or ()]
    spoken = [f"{message.role}\n{message.text()}" for message in question.messages]
    said = "\n".join([*offered, *spoken]).encode()
    prompt = -(-len(said) // BYTES_PER_TOKEN)
    completion = plan.tokens * question.choices
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cache.look(said), "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": len(plan.thoughts) * question.choices,
            "audio_tokens": 0,
        },
    }


def _refusal(status: int, message: str) -> EchoExchange:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    body = msgspec.json.encode({"error": error})
    return EchoExchange(status, _JSON, iter([body]), seconds_per_piece=0)


_decoder = msgspec.json.Decoder(_Question)
