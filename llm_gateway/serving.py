"""`llm-gateway serve`: runs the servers of one process and, once told to, stops everything in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
import uvloop
from sqlalchemy.exc import SQLAlchemyError

from billing.admins import Admins
from billing.audit import AuditTrail
from billing.backlog import Backlog
from billing.books import BooksStaleError, NoBookError
from billing.db.hot import DatabaseUnavailableError
from billing.holds import GuardUnavailableError
from billing.holds.redis import RedisHoldStore
from billing.settlement.desk import Desk
from billing.settlement.reconcile import Reconciler
from billing.settlement.registry import AWAY
from billing.settlement.service import end_tasks
from llm_gateway import banner, clock, first_start
from llm_gateway.api.litestar import (
    ApiState,
    Dependency,
    ModelOffer,
    OpsState,
    Surface,
    create_api,
)
from llm_gateway.app import build_first_start, build_gateway, redis_view, secrets_of
from llm_gateway.credentials import CredentialsError
from llm_gateway.data_lock import DataInUseError, DataLock
from llm_gateway.estimate import Estimator
from llm_gateway.front import Front, front_class
from llm_gateway.garbage import collect_rarely
from llm_gateway.gateway import HEARTBEAT_SECONDS
from llm_gateway.logs import configure, writer_for_stderr
from llm_gateway.neighbours import Meeting, Neighbours
from llm_gateway.readiness import database_row, guard_rows, registry_rows
from llm_gateway.secret import Secret
from llm_gateway.servers import Served, close_all, make_server
from llm_gateway.start import (
    StartError,
    check_providers,
    check_schema,
    listen_all,
    make_data_dir,
)
from llm_gateway.supervisor import Link, Supervisor

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence

    from billing.settlement.registry import Pace
    from llm_gateway.app import Parts
    from llm_gateway.config import Config
    from llm_gateway.credentials import Credentials

T = TypeVar("T")

TICK_SECONDS: Final = 1.0
GAUGE_SECONDS: Final = 2.0
HELD_SECONDS: Final = 10.0
# What a start may fail with once the settings are right: a dependency is away.
_DEPENDENCY_AWAY: Final = (DatabaseUnavailableError, *AWAY)

_log = logging.getLogger(__name__)


def serve(config: Config, *, pace: Pace | None = None) -> int:
    """Run the gateway until it is told to stop; the exit status. `pace`: of the registry.

    0 after SIGINT or SIGTERM, 2 if it cannot start (one line on stderr says why), 1 if one of
    several processes did not end in order.
    """
    lock: DataLock | None = None
    try:
        check_providers(config)
        listeners = listen_all(config)
        lock = DataLock(make_data_dir(config))
        lock.take()
        check_schema(config)
        if config.server.processes > 1:
            return _serve_several(config, listeners, pace)
        _run(_serve(config, listeners, pace=pace))
    except (StartError, DataInUseError, CredentialsError) as error:
        sys.stderr.write(f"llm-gateway: {error}\n")
        return 2
    finally:
        if lock is not None:
            lock.release()
    return 0


class Seat(msgspec.Struct, frozen=True):
    """The place of one of several processes: the way to the supervisor, and to the others."""

    link: Link
    paths: Sequence[str]  # of the sockets of all, by number
    own: socket.socket


def _serve_several(config: Config, listeners: list[socket.socket], pace: Pace | None) -> int:
    """Processes that share the listening sockets; this one only looks after them."""
    credentials, notes = _run(_prepare(config, listeners))
    meeting = Meeting(Path(config.server.data_dir), config.server.processes)

    def child(link: Link) -> int:
        try:
            token = credentials.admin_token
            seat = Seat(link, meeting.paths, meeting.take(link.number))
            _run(_serve(config, listeners, pace=pace, seat=seat, admin_token=token))
        except _StoppedError:
            return 0
        except StartError as error:
            sys.stderr.write(f"llm-gateway: {error}\n")
            return 2
        return 0

    def on_ready() -> None:
        said = banner.banner(config, credentials, command=command_name(), notes=notes)
        print(said, flush=True)  # noqa: T201 - for people

    def on_stop() -> None:
        for listener in listeners:
            listener.close()

    return Supervisor(config.server.processes, child, on_ready=on_ready, on_stop=on_stop).run()


def command_name() -> str:
    """How whoever started this program calls it: by name if the shell finds it, else by its path."""
    started = sys.argv[0]
    named = Path(started).name != banner.COMMAND or shutil.which(banner.COMMAND)
    return banner.COMMAND if named else started


def _run(main: Coroutine[object, object, T]) -> T:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


async def _serve(
    config: Config,
    listeners: list[socket.socket],
    *,
    pace: Pace | None,
    seat: Seat | None = None,
    admin_token: str = "",
) -> None:
    """Start everything in the order of dependence; the stack stops it in the opposite order.

    `seat`: among several processes; their supervisor has made the first start and the admin token.
    """
    async with AsyncExitStack() as stack:
        log = writer_for_stderr(secrets_of(config))
        configure(log)
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its starts and stops are ours
        stack.callback(log.close)
        said = ""
        neighbours = None
        if seat is None:
            with _dependencies():
                parts = await build_gateway(config, stack, log, pace=pace)
                credentials, notes = await first_start.prepare(_first(parts), listeners)
                admin_token = credentials.admin_token
                said = banner.banner(config, credentials, command=command_name(), notes=notes)
                await parts.books.start()
            stop = _StopRequests(None)
        else:
            stop = _StopRequests(seat.link)  # the supervisor may go while this process starts
            with _dependencies():
                parts = await stop.unless(build_gateway(config, stack, log, pace=pace))
                await stop.unless(parts.books.start())
            neighbours = Neighbours(seat.paths, seat.link.number, parts.metrics)
            await neighbours.listen(seat.own, stack)
        log.hide(admin_token)
        servers = _servers(parts, admin_token, listeners, neighbours)
        collect_rarely()
        if parts.registration is not None:
            # What came since it was entered may have taken longer than an entry holds. If it was
            # declared dead meanwhile, the next beat is told so again, and follows.
            await parts.registration.beat()
        async with _running(parts, servers):
            if seat is None:
                print(said, flush=True)  # noqa: T201 - for people
            else:
                seat.link.tell_ready()
            await stop.first.wait()
            await _stop(parts, servers, stop)


async def _prepare(
    config: Config, listeners: list[socket.socket]
) -> tuple[Credentials, tuple[str, ...]]:
    """The first start, made once for several processes."""
    async with AsyncExitStack() as stack:
        with _dependencies():
            return await first_start.prepare(await build_first_start(config, stack), listeners)


@contextlib.contextmanager
def _dependencies() -> Iterator[None]:
    """What is away at the start ends it with one line."""
    try:
        yield
    except _DEPENDENCY_AWAY as error:
        first = str(error).partition("\n")[0] or type(error).__name__
        raise StartError(f"something the gateway needs is away: {first}") from error


def _first(parts: Parts) -> first_start.FirstStart:
    return first_start.FirstStart(
        config=parts.config, books=parts.books, accounts=parts.accounts, keys=parts.keys
    )


# -- when to stop ------------------------------------------------------------------------------


class _StoppedError(Exception):
    """A request to stop came before the start was over."""


class _StopRequests:
    """The first SIGINT or SIGTERM asks for an orderly end, the second for a quick one.

    Where a supervisor runs, only it may ask for the quick one: a signal may reach both of them, and
    would count twice. If it is gone itself, that is a request to end as well.
    """

    def __init__(self, link: Link | None) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()
        loop = asyncio.get_running_loop()
        heard = self.first.set if link is not None else self._heard
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, heard)
        if link is not None:
            link.listen(loop, on_stop=self.first.set, on_hurry=self._hurry)
            if link.stop_asked:
                self.first.set()

    async def unless(self, work: Coroutine[object, object, T]) -> T:
        """What `work` returns; a request to stop cancels it and raises _StoppedError."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self.first.wait())
        await asyncio.wait([working, stopping], return_when=asyncio.FIRST_COMPLETED)
        if self.first.is_set():
            working.cancel()
            await asyncio.wait([working])
            if not working.cancelled():
                working.exception()  # whatever it is, it is of no interest any more
            raise _StoppedError
        stopping.cancel()
        return working.result()

    def _heard(self) -> None:
        (self.second if self.first.is_set() else self.first).set()

    def _hurry(self) -> None:
        self.first.set()
        self.second.set()


async def _stop(parts: Parts, servers: list[Served], stop: _StopRequests) -> None:
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


# -- the servers -------------------------------------------------------------------------------


def _servers(
    parts: Parts, token: str, listeners: list[socket.socket], neighbours: Neighbours | None
) -> list[Served]:
    """The main server, with the calls; with `admin_host`, a second one for admin and metrics."""
    front = front_class(parts.gateway)
    state = _api_state(parts, token, neighbours)
    if len(listeners) == 1:
        return [Served(make_server(create_api(state, Surface.ALL), front), listeners[0])]
    return [
        Served(make_server(create_api(state, Surface.PUBLIC), front), listeners[0]),
        Served(make_server(create_api(state, Surface.OPERATIONS)), listeners[1]),
    ]


def _api_state(parts: Parts, token: str, neighbours: Neighbours | None) -> ApiState:
    async def own_figures() -> str:
        return parts.metrics.render()

    view = redis_view(parts.config, parts.holds, parts.database)
    return ApiState(
        database=parts.database,
        keys=parts.keys,
        books=parts.books,
        accounts=parts.accounts,
        audit=AuditTrail(parts.database),
        desk=Desk(
            parts.database,
            parts.holds,
            now_ms=clock.now_ms,
            is_own=lambda process: process == parts.gateway.guard.process,
            on_waiting=parts.ledger.notify if parts.ledger else lambda: None,
            shelf=view,
            guard=view,
        ),
        reconciler=Reconciler(
            parts.database,
            now_ms=clock.now_ms,
            call_seconds_max=parts.config.guard.call_seconds_max,
            guard=view,
        ),
        shop=parts.shop,
        simulator=parts.simulator,
        admins=Admins(parts.database, now_ms=clock.now_ms),
        admin_token=Secret(token),
        now_ms=clock.now_ms,
        new_event_id=clock.new_event_id,
        offers=lambda: _offers(parts.config),
        quoter=parts.gateway.quoter,
        estimator=Estimator(
            quoter=parts.gateway.quoter,
            guard=parts.gateway.guard,
            database=parts.database,
            accounts=parts.accounts,
            body_bytes_max=parts.config.server.body_bytes_max,
            now_ms=clock.now_ms,
            check_admitting=parts.gateway.check_admitting,
            held_elsewhere=view,
        ),
        ops=OpsState(
            metrics=neighbours.render if neighbours is not None else own_figures,
            readiness=lambda: _readiness(parts),
        ),
    )


def _offers(config: Config) -> list[ModelOffer]:
    on = {provider.name for provider in config.providers if provider.on}
    offers = []
    for model in config.models:
        targets = tuple(
            (each.provider, each.model) for each in model.targets if each.provider in on
        )
        offers.append(ModelOffer(name=model.name, targets=targets))
    return offers


async def _readiness(parts: Parts) -> list[Dependency]:
    """One row a dependency: whether calls can be taken now."""
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
    guard, registry = guard_rows(parts.holds), registry_rows(parts.registration)
    return [await database_row(parts.hot), prices, spool, *guard, *registry, process]


@contextlib.asynccontextmanager
async def _running(parts: Parts, servers: list[Served]) -> AsyncIterator[None]:
    """The servers, the ledger worker and the ticks; ends them all, whatever happens."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(served.run(), name="server") for served in servers]
        settling = [each for each in (parts.publisher, parts.ledger) if each is not None]
        services = [group.create_task(each.run(), name="settlement") for each in settling]
        ticks = [
            group.create_task(_every(HEARTBEAT_SECONDS, parts.gateway.heartbeat)),
            group.create_task(_every(TICK_SECONDS, partial(_tick, parts, servers))),
            group.create_task(_every(GAUGE_SECONDS, partial(_update_gauges, parts))),
            group.create_task(_every(HELD_SECONDS, partial(_update_held, parts))),
            *(group.create_task(chore.run()) for chore in parts.chores),
        ]
        try:
            await _started(servers)
            yield
        finally:
            await close_all(servers, tasks)
            await end_tasks(ticks)
            for each in settling:
                each.stop()
            if services:
                await asyncio.wait(services)


async def _started(servers: list[Served]) -> None:
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


async def _tick(parts: Parts, servers: list[Served]) -> None:
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


async def _update_gauges(parts: Parts) -> None:
    try:
        figures = await Backlog(parts.database).figures()
        if isinstance(parts.holds, RedisHoldStore):  # the database knows nothing of them
            figures = msgspec.structs.replace(figures, held=parts.metrics.held_micro_credits)
        parts.gateway.update_gauges(figures)
    except SQLAlchemyError as error:
        _log.warning("the figures of /metrics could not be read: %s", type(error).__name__)


async def _update_held(parts: Parts) -> None:
    """What Redis holds, for /metrics: a walk over all accounts that hold something."""
    view = redis_view(parts.config, parts.holds, parts.database)
    if view is None:
        return
    try:
        parts.metrics.held_micro_credits = await view.held()
    except GuardUnavailableError as error:
        _log.warning("the held credit of /metrics could not be read: %s", error)
