"""The two ends of a soak: clients that call at random, and the provider that serves what they plan."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

from tests.support.gateway import ADMIN_TOKEN, TestAccount
from tests.support.provider import (
    DONE,
    LAST_CHUNK,
    STREAM_HEAD,
    completion,
    delta,
    event,
    json_bytes,
    usage,
    usage_event,
)
from tests.support.rawhttp import chat, request

CALL_WAIT_SECONDS: Final = 45.0  # beyond it a client calls the answer hung
GRANT_TRIES: Final = 6
OUTPUT_MAX: Final = 1000  # of the model, where a request sets no limit
LAST_LINE: Final = b"0\r\n"  # of a chunked body
WORDS: Final = 12  # pieces of a streamed answer

# How often a call is what, in parts of the sum.
KINDS: Final = {
    "json": 30,
    "stream": 30,
    "slow stream": 16,
    "no usage, json": 5,
    "no usage, stream": 5,
    "broken json": 4,
    "broken stream": 5,
    "error": 5,
}
STREAMED: Final = ("stream", "slow stream", "no usage, stream", "broken stream")


@dataclass(frozen=True)
class Plan:
    """What a call shall be; travels to the provider in the field `x_script`."""

    call: str
    kind: str
    prompt: int
    completion: int
    milliseconds: int  # how long the provider takes

    @property
    def text(self) -> str:
        """The plan as one string."""
        return json.dumps([self.call, self.kind, self.prompt, self.completion, self.milliseconds])

    @classmethod
    def parse(cls, text: str) -> Self:
        """The plan that `text` tells."""
        return cls(*json.loads(text))


@dataclass
class Served:
    """What the provider did about one request."""

    plan: Plan
    completion: int  # tokens, within the limit that the gateway sent
    begun: bool = False  # some of an answer was sent
    whole: bool = False  # all of it was

    @property
    def usage(self) -> dict[str, object]:
        """As the answer reports it."""
        return usage(self.plan.prompt, self.completion)

    @property
    def reports(self) -> bool:
        """Whether its answer, once whole, says what was used."""
        return self.plan.kind in ("json", "stream", "slow stream")


class SoakProvider:
    """Answers as each request plans it, on loopback, in the loop of the soak."""

    def __init__(self) -> None:
        self.served: dict[str, list[Served]] = {}
        self.errors: list[str] = []  # of its own: they must be none
        self._server: asyncio.Server | None = None
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, backlog=1024)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._handlers):
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    @property
    def base_url(self) -> str:
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass
        except Exception as error:
            self.errors.append(repr(error))
        finally:
            self._handlers.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; whether the connection goes on."""
        text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(text.partition("content-length:")[2].split("\r\n")[0])
        body = json.loads(await reader.readexactly(length))
        plan = Plan.parse(body["x_script"])
        served = Served(plan, min(plan.completion, int(body.get("max_tokens", OUTPUT_MAX))))
        self.served.setdefault(plan.call, []).append(served)
        if plan.kind in STREAMED:
            return await self._stream(served, writer)
        return await self._json(served, writer)

    async def _json(self, served: Served, writer: asyncio.StreamWriter) -> bool:
        await asyncio.sleep(served.plan.milliseconds / 1000)
        if served.plan.kind == "error":
            writer.write(json_bytes({"error": {"message": "no", "type": "x"}}, status=500))
            await writer.drain()
            return True
        answer = completion("word " * served.completion, served.usage)
        if not served.reports:
            del answer["usage"]
        data = json_bytes(answer)
        served.begun = True
        if served.plan.kind == "broken json":
            writer.write(data[: len(data) // 2])
            await writer.drain()
            return False
        writer.write(data)
        await writer.drain()
        served.whole = True
        return True

    async def _stream(self, served: Served, writer: asyncio.StreamWriter) -> bool:
        writer.write(STREAM_HEAD)
        for number in range(WORDS):
            await asyncio.sleep(served.plan.milliseconds / 1000 / WORDS)
            served.begun = True
            share = served.completion * (number + 1) // WORDS - served.completion * number // WORDS
            writer.write(event(delta("word " * share)))
            await writer.drain()
            if served.plan.kind == "broken stream" and number == WORDS // 2:
                return False
        writer.write(event(delta(None, finish="stop")))
        if served.reports:
            writer.write(usage_event(served.usage))
        writer.write(DONE + LAST_CHUNK)
        await writer.drain()
        served.whole = True
        return True


@dataclass
class Outcome:
    """What a client saw of one call."""

    plan: Plan
    account: str
    status: int = 0  # 0: no answer came
    ended: bool = False  # it was told that the answer is complete
    own_end: bool = False  # and that by the provider, not by a gateway that cut it
    content: bool = False  # it read some of an answer
    left: bool = False  # it went away itself
    hung: bool = False
    port: int = 0
    began: float = 0.0  # seconds since the epoch
    seconds: float = 0.0  # from connecting to the end


@dataclass
class Load:
    """Clients that call until told to stop; `ports` gives the gateways, up or not."""

    ports: Callable[[], Sequence[int]]
    hot: TestAccount
    others: Sequence[TestAccount]
    thin: Sequence[TestAccount]
    seed: int
    call_ms_max: int
    outcomes: list[Outcome] = field(default_factory=list)
    grants: dict[str, tuple[str, int, bool]] = field(default_factory=dict)  # account, amount, acked
    stopping: bool = False
    turn: int = 0  # a load that runs again makes other calls

    async def run(self, clients: int) -> None:
        """Until `stopping`, and every call has ended."""
        async with asyncio.TaskGroup() as tasks:
            for number in range(clients):
                tasks.create_task(self._client(number))
            tasks.create_task(self._grant())

    @property
    def _seed(self) -> str:
        return f"{self.seed}/{self.turn}" if self.turn else f"{self.seed}"

    @property
    def _prefix(self) -> str:
        return f"t{self.turn}-" if self.turn else ""

    async def _client(self, number: int) -> None:
        chance = random.Random(f"{self._seed}/client {number}")
        count = 0
        while not self.stopping:
            count += 1
            plan = self._plan(chance, f"{self._prefix}c{number}-{count}")
            account = self._payer(chance)
            outcome = Outcome(plan, account.id)
            self.outcomes.append(outcome)
            await self._call(chance, outcome, account)
            refused = outcome.status in (0, 402, 429, 503)
            await asyncio.sleep(chance.uniform(0.05, 0.3) if refused else chance.uniform(0, 0.02))

    def _payer(self, chance: random.Random) -> TestAccount:
        draw = chance.random()
        if draw < 0.4:
            return self.hot
        return chance.choice(self.thin if draw < 0.7 else self.others)

    def _plan(self, chance: random.Random, call: str) -> Plan:
        [kind] = chance.choices(list(KINDS), list(KINDS.values()))
        longest = self.call_ms_max if chance.random() < 0.3 else 1500
        quick = chance.choice((0, 0, 20, 200))
        return Plan(
            call=call,
            kind=kind,
            prompt=chance.randint(1, 60),
            completion=chance.randint(1, 900),
            milliseconds=chance.randint(200, longest) if kind == "slow stream" else quick,
        )

    async def _call(self, chance: random.Random, outcome: Outcome, account: TestAccount) -> None:
        plan = outcome.plan
        fields: dict[str, object] = {"stream": True} if plan.kind in STREAMED else {}
        if chance.random() < 0.5:
            fields["max_tokens"] = chance.randint(20, 1000)
        scene = chance.choice(("agent", "drained", "stopped"))
        data = request(
            body=chat(x_script=plan.text, **fields),
            key=account.key,
            headers={"X-Request-Id": plan.call, "X-Scene": scene},
        )
        leaves = chance.uniform(0, 0.3 + plan.milliseconds / 1000)
        patience = leaves if chance.random() < 0.1 else CALL_WAIT_SECONDS
        outcome.began, started = time.time(), time.monotonic()
        try:
            async with asyncio.timeout(patience):
                await self._exchange(chance, data, outcome)
        except TimeoutError:
            outcome.left = patience == leaves
            outcome.hung = not outcome.left
        except (OSError, EOFError):
            pass
        outcome.seconds = time.monotonic() - started

    async def _exchange(self, chance: random.Random, data: bytes, outcome: Outcome) -> None:
        reader, writer, outcome.port = await self._connect(chance)
        try:
            writer.write(data)
            text = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            outcome.status = int(text.split(" ")[1])
            if "transfer-encoding" in text:
                await self._read_stream(reader, outcome)
            else:
                length = int(text.partition("content-length:")[2].split("\r\n")[0])
                body = await reader.readexactly(length)
                outcome.content = outcome.ended = outcome.own_end = outcome.status == 200
                assert outcome.status != 200 or b'"word ' in body, body[:300]
        finally:
            writer.transport.abort()

    async def _connect(
        self, chance: random.Random
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int]:
        """To a gateway that is up, as a balancer does; with its port."""
        ports = list(self.ports())
        chance.shuffle(ports)
        for port in ports:
            with contextlib.suppress(OSError):
                return *await asyncio.open_connection("127.0.0.1", port), port
        raise ConnectionError("no gateway is up")

    async def _read_stream(self, reader: asyncio.StreamReader, outcome: Outcome) -> None:
        while line := await reader.readline():
            outcome.content |= b'"word ' in line
            outcome.own_end |= b'"stop"' in line
            outcome.ended |= line == b"data: [DONE]\n"
            if outcome.ended or line == LAST_LINE:
                return

    # -- credit for thin accounts ------------------------------------------------------------

    async def _grant(self) -> None:
        """Top a thin account up now and then; asks anew, with the same id, until told so."""
        chance = random.Random(f"{self._seed}/grants")
        number = 0
        while not self.stopping:
            await asyncio.sleep(chance.uniform(0.2, 0.8))
            number += 1
            account, amount = chance.choice(self.thin), chance.randint(500, 5_000)
            event_id = f"grant:soak-{self._prefix}{number}"
            self.grants[event_id] = (account.id, amount, False)
            for _ in range(GRANT_TRIES):
                if await self._ask_grant(chance, event_id, account.id, amount):
                    self.grants[event_id] = (account.id, amount, True)
                    break

    async def _ask_grant(
        self, chance: random.Random, event_id: str, account: str, amount: int
    ) -> bool:
        value = {"account": account, "event_id": event_id, "amount_micro_credits": amount}
        data = request("/admin/grants", json.dumps(value).encode(), key=ADMIN_TOKEN)
        with contextlib.suppress(OSError, EOFError):
            async with asyncio.timeout(5):
                reader, writer, _ = await self._connect(chance)
                try:
                    writer.write(data)
                    line = await reader.readline()
                    return line[9:10] == b"2"
                finally:
                    writer.transport.abort()
        return False
