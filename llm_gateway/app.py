"""The only place that constructs: from a configuration to a running gateway, and back down in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import socket
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import uvicorn
import uvloop
from sqlalchemy.exc import SQLAlchemyError
from typing_extensions import override

from billing.accounts import AccountExistsError, Accounts, Grant
from billing.audit import AuditTrail
from billing.books import BookRefusedError, BooksStaleError, NoBookError, PriceBooks
from billing.db import migrate
from billing.db.hot import DatabaseUnavailableError
from billing.db.session import Database, sqlite_path
from billing.db.sqlite import SqliteHotDatabase
from billing.guard import CreditBalanceGuard
from billing.holds.database import DatabaseHoldStore
from billing.keys import KeyKind, Keys, NewKey
from billing.settlement.outbox import Outbox
from billing.settlement.recovery import recover
from billing.settlement.spool import Spool
from billing.settlement.worker import LedgerWorker
from llm_gateway import banner, clock, package_data
from llm_gateway.api.litestar import ApiState, Dependency, ModelOffer, Surface, create_api
from llm_gateway.credentials import (
    Credentials,
    CredentialsError,
    read_credentials,
    write_credentials,
)
from llm_gateway.data_lock import DataInUseError, DataLock
from llm_gateway.front import Front, front_class
from llm_gateway.gateway import HEARTBEAT_SECONDS, Gateway
from llm_gateway.logs import LineWriter, configure, writer_for_stderr
from llm_gateway.metrics import Metrics
from llm_gateway.secret import Secret
from llm_gateway.tokens import TokenCounter
from llm_gateway.upstream.echo import EchoUpstream
from llm_gateway.upstream.http import HttpUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from litestar import Litestar

    from llm_gateway.config import Config, ProviderConfig
    from llm_gateway.upstream import Upstream

DEMO_ACCOUNT: Final = "demo"
DEMO_CREDIT: Final = 1_000 * 1_000_000  # micro-credits
BACKLOG: Final = 2048  # connections that the kernel keeps until they are accepted
TICK_SECONDS: Final = 1.0
KEEP_ALIVE_SECONDS: Final = 75  # an idle client connection is kept so long

_log = logging.getLogger(__name__)


class StartError(Exception):
    """The gateway cannot start; the message is one line that says what to do."""


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a process is made of."""

    config: Config
    gateway: Gateway
    database: Database
    hot: SqliteHotDatabase
    keys: Keys
    books: PriceBooks
    accounts: Accounts
    outbox: Outbox
    worker: LedgerWorker
    metrics: Metrics
    log: LineWriter


def serve(config: Config) -> int:
    """Run one gateway process until it is told to stop; the exit status.

    0 after SIGINT or SIGTERM, 2 if it cannot start (one line on stderr says why).
    """
    data_dir = Path(config.server.data_dir)
    lock = DataLock(data_dir)
    try:
        _check_providers(config)
        listeners = [_listen(config.server.host, config.server.port)]
        if config.server.admin_address is not None:
            listeners.append(_listen(*config.server.admin_address))
        _make_data_dir(data_dir)
        lock.take()
        _migrate(config)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(config, listeners))
    except (StartError, DataInUseError, CredentialsError) as error:
        sys.stderr.write(f"llm-gateway: {error}\n")
        return 2
    finally:
        lock.release()
    return 0


async def _serve(config: Config, listeners: list[socket.socket]) -> None:
    """Start everything in the order of dependence; the stack stops it in the opposite order."""
    async with AsyncExitStack() as stack:
        log = writer_for_stderr(_secrets_of(config))
        configure(log)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its starts and stops are ours
        stack.callback(log.close)
        parts = await _build(config, stack, log)
        credentials, notes = await _first_start(parts, listeners)
        log.hide(credentials.admin_token)
        stop = _StopSignals()
        servers = _servers(parts, credentials.admin_token, listeners)
        async with _running(parts, servers):
            print(banner.banner(config, credentials, notes=notes), flush=True)  # noqa: T201 - for people
            await stop.first.wait()
            await _stop(parts, servers, stop)


# -- before the event loop ---------------------------------------------------------------------


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is found before any data is touched.

    uvicorn listens on it once everything is ready: until then clients are refused, not kept waiting.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        why = error.strerror or str(error)
        raise StartError(
            f"cannot listen on {host}:{port} ({why}): choose another with --port or [server] port"
        ) from error
    listener.setblocking(False)
    return listener


def _make_data_dir(data_dir: Path) -> None:
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = data_dir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartError(
            f"the data directory {data_dir} cannot be written ({error.strerror})"
        ) from error


def _migrate(config: Config) -> None:
    try:
        migrate.upgrade(config.database.url)
    except Exception as error:
        first = str(error).partition("\n")[0]
        raise StartError(f"the database cannot be brought up to date: {first}") from error


def _check_providers(config: Config) -> None:
    if not any(provider.on for provider in config.providers):
        wanted = ", ".join(provider.off_because for provider in config.providers)
        why = wanted or "none is configured"
        raise StartError(f"no provider is on ({why}): set a key, or add a provider")


def _secrets_of(config: Config) -> list[str]:
    keys = [provider.api_key.reveal() for provider in config.providers if provider.api_key]
    token = config.auth.admin_token
    return [*keys, token.reveal()] if token else keys


# -- building ----------------------------------------------------------------------------------


async def _build(config: Config, stack: AsyncExitStack, log: LineWriter) -> Parts:
    path = sqlite_path(config.database.url)
    if path is None:
        raise StartError("only SQLite files serve as database in this version")
    process = clock.new_event_id(clock.now_ms())
    database = Database(config.database.url)
    stack.push_async_callback(database.dispose)
    hot = SqliteHotDatabase(path, clock=clock.now_ms)
    await hot.start()
    stack.push_async_callback(hot.close)
    worker = LedgerWorker(hot, clock=clock.now_ms)
    spool = Spool(Path(config.server.data_dir) / "spool", process)
    outbox = Outbox(hot, spool, on_written=worker.notify)
    await outbox.start()
    stack.push_async_callback(outbox.close)
    # The lock on the data proves that every former process is gone: what it left is ours to settle.
    recovered = await recover(hot, outbox, process=process, clock=clock.now_ms)
    if recovered.orphans:
        _log.warning("%d calls of a former process broke off and were estimated", recovered.orphans)
    worker.notify()
    metrics = Metrics()
    books = PriceBooks(database, now_ms=clock.now_ms, monotonic=clock.monotonic)
    keys = Keys(database, now_ms=clock.now_ms, monotonic=clock.monotonic)
    holds = DatabaseHoldStore(hot)
    upstreams = {each.name: _upstream(each) for each in config.providers if each.on}
    for upstream in upstreams.values():
        stack.push_async_callback(upstream.close)
    gateway = Gateway(
        config=config,
        keys=keys,
        books=books,
        holds=holds,
        guard=CreditBalanceGuard(
            holds, process=process, min_output_tokens=config.guard.min_output_tokens
        ),
        outbox=outbox,
        upstreams=upstreams,
        tokens=TokenCounter(),
        metrics=metrics,
        log=log,
    )
    return Parts(
        config=config,
        gateway=gateway,
        database=database,
        hot=hot,
        keys=keys,
        books=books,
        accounts=Accounts(database, hot, now_ms=clock.now_ms),
        outbox=outbox,
        worker=worker,
        metrics=metrics,
        log=log,
    )


async def _first_start(
    parts: Parts, listeners: list[socket.socket]
) -> tuple[Credentials, tuple[str, ...]]:
    """Load the first price book, make the admin token and, on loopback, the demo account and its key."""
    config = parts.config
    notes = await _load_prices(parts)
    data_dir = Path(config.server.data_dir)
    known = read_credentials(data_dir) or Credentials()
    given = config.auth.admin_token
    token = given.reveal() if given else known.admin_token or secrets.token_urlsafe(32)
    demo = Credentials()
    if config.server.loopback:
        demo = known if known.demo_key else await _make_demo(parts)
    admin = config.server.admin_address
    credentials = Credentials(
        url=banner.url_of(config.server.host, listeners[0].getsockname()[1]),
        admin_url=banner.url_of(admin[0], listeners[1].getsockname()[1]) if admin else "",
        admin_token="" if given else token,
        demo_account=demo.demo_account,
        demo_key=demo.demo_key,
    )
    if credentials != known:
        write_credentials(data_dir, credentials)
    return msgspec.structs.replace(credentials, admin_token=token), notes


async def _load_prices(parts: Parts) -> tuple[str, ...]:
    """Make sure that a price book is in effect; what there is to say of the file."""
    name = parts.config.pricing.book
    try:
        text = package_data.price_book(name, beside=parts.config.path)
    except OSError as error:
        raise StartError(f"the price book {name} cannot be read ({error.strerror})") from error
    try:
        loaded = await parts.books.load_first(text, actor="serve")
    except BookRefusedError as error:
        first = next(each for each in error.problems if each.level == "error")
        raise StartError(
            f"the price book {name} has errors (line {first.line}: {first.message}); "
            f"`llm-gateway prices lint {name}` lists them all"
        ) from error
    await parts.books.start()
    if loaded is None and await parts.books.version_of(text) is None:
        return (f"{name} differs from the price books in the database, which stay in effect",)
    return ()


async def _make_demo(parts: Parts) -> Credentials:
    with contextlib.suppress(AccountExistsError):
        await parts.accounts.create(DEMO_ACCOUNT, name="Demo", actor="serve")
    await parts.accounts.grant(
        Grant(event_id="demo:credits", account=DEMO_ACCOUNT, amount=DEMO_CREDIT), actor="serve"
    )
    scenes = tuple(scene.name for scene in parts.config.scenes)
    demo = NewKey(
        kind=KeyKind.USER,
        account=DEMO_ACCOUNT,
        default_scene=scenes[0],
        scenes=scenes,
        description="demo",
    )
    _, token = await parts.keys.create(demo, actor="serve")
    return Credentials(demo_account=DEMO_ACCOUNT, demo_key=token)


# -- running -----------------------------------------------------------------------------------


class _Server(uvicorn.Server):
    """uvicorn's server without its signal handlers: they end the process with the signal's status."""

    @override
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _StopSignals:
    """The first SIGINT or SIGTERM asks for an orderly end, the second for a quick one."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._heard)

    def _heard(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


class _Served(msgspec.Struct, frozen=True):
    """A server and the socket it listens on."""

    server: _Server
    listener: socket.socket

    async def run(self) -> None:
        await self.server.serve(sockets=[self.listener])


def _servers(parts: Parts, token: str, listeners: list[socket.socket]) -> list[_Served]:
    """The main server, with the calls; with `admin_host`, a second one for admin and metrics."""
    front = front_class(parts.gateway)
    state = _api_state(parts, token)
    if len(listeners) == 1:
        return [_Served(_server(create_api(state, Surface.ALL), front), listeners[0])]
    return [
        _Served(_server(create_api(state, Surface.PUBLIC), front), listeners[0]),
        _Served(_server(create_api(state, Surface.OPERATIONS), "httptools"), listeners[1]),
    ]


def _server(api: Litestar, protocol: type[Front] | str) -> _Server:
    return _Server(
        uvicorn.Config(
            api,
            http=protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
        )
    )


def _api_state(parts: Parts, token: str) -> ApiState:
    return ApiState(
        database=parts.database,
        keys=parts.keys,
        books=parts.books,
        accounts=parts.accounts,
        audit=AuditTrail(parts.database),
        admin_token=Secret(token),
        now_ms=clock.now_ms,
        new_event_id=clock.new_event_id,
        offers=lambda: _offers(parts.config),
        metrics=lambda: parts.metrics.render(),
        readiness=lambda: _readiness(parts),
    )


def _offers(config: Config) -> list[ModelOffer]:
    on = {provider.name for provider in config.providers if provider.on}
    offers = []
    for model in config.models:
        targets = tuple(
            (each.provider, each.model) for each in model.targets if each.provider in on
        )
        if targets:
            offers.append(ModelOffer(name=model.name, targets=targets))
    return offers


async def _readiness(parts: Parts) -> list[Dependency]:
    """One row a dependency: whether calls can be taken now."""
    try:
        await parts.hot.ping()
        database = Dependency(name="database", up=True)
    except DatabaseUnavailableError:
        database = Dependency(name="database", up=False, detail="it takes no writes")
    try:
        version, _ = parts.books.current(clock.now_ms())
        prices = Dependency(name="prices", up=True, detail=f"book {version}")
    except (BooksStaleError, NoBookError):
        prices = Dependency(name="prices", up=False, detail="no current price book")
    durable = parts.outbox.durable
    spool = Dependency(
        name="charges",
        up=durable,
        detail="" if durable else "neither database nor spool takes them",
    )
    running = not parts.gateway.stopping
    process = Dependency(name="process", up=running, detail="" if running else "shutting down")
    return [database, prices, spool, process]


@contextlib.asynccontextmanager
async def _running(parts: Parts, servers: list[_Served]) -> AsyncIterator[None]:
    """The servers, the ledger worker and the ticks; ends them all, whatever happens."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(served.run(), name="server") for served in servers]
        worker = group.create_task(parts.worker.run(), name="ledger-worker")
        ticks = [
            group.create_task(_every(HEARTBEAT_SECONDS, parts.gateway.heartbeat)),
            group.create_task(_every(TICK_SECONDS, partial(_tick, parts, servers))),
        ]
        try:
            await _started(servers)
            yield
        finally:
            for served in servers:
                served.server.should_exit = True
            await asyncio.wait(tasks)
            for tick in ticks:
                tick.cancel()
            parts.worker.stop()
            await asyncio.wait([worker])


async def _started(servers: list[_Served]) -> None:
    # uvicorn tells nobody when it listens.
    while not all(served.server.started for served in servers):  # noqa: ASYNC110
        await asyncio.sleep(0)


async def _every(seconds: float, act: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(seconds)
        try:
            await act()
        except Exception:  # noqa: BLE001 - the next time may be better
            _log.exception("a periodic task failed; it is tried again")


async def _tick(parts: Parts, servers: list[_Served]) -> None:
    """Once a second: newer prices, calls and clients that take too long, gauges."""
    parts.gateway.end_overdue()
    for served in servers:
        now = asyncio.get_running_loop().time()
        for connection in list(served.server.server_state.connections):
            if isinstance(connection, Front) and connection.is_too_slow(now):
                connection.time_out()
    try:
        await parts.books.refresh()
    except SQLAlchemyError as error:
        _log.warning("price books could not be read: %s", type(error).__name__)
    parts.gateway.update_gauges(parts.worker.unsettled_age_ms())


async def _stop(parts: Parts, servers: list[_Served], stop: _StopSignals) -> None:
    """Accept no more, let calls end for `shutdown_seconds`, end the rest; their charges are durable."""
    parts.gateway.stopping = True
    for served in servers:
        served.listener.close()
        served.server.should_exit = True
    ending = asyncio.create_task(parts.gateway.finish_calls(parts.config.server.shutdown_seconds))
    hurried = asyncio.create_task(stop.second.wait())
    await asyncio.wait([ending, hurried], return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if not ending.done():
        parts.gateway.end_all("shutting_down")
    await ending


def _upstream(provider: ProviderConfig) -> Upstream:
    return EchoUpstream(provider) if provider.kind == "echo" else HttpUpstream(provider)
