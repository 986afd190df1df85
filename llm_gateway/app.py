"""The only place that constructs: from a configuration to the parts of a gateway or a ledger worker."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from billing.accounts import Accounts
from billing.backlog import Backlog
from billing.books import PriceBooks
from billing.db.engine import hot_database
from billing.db.partitions import keep_partitions
from billing.db.session import Database
from billing.guard import CreditBalanceGuard
from billing.holds.factory import hold_store
from billing.holds.living import LivingHoldStore
from billing.holds.redis import RedisHoldStore
from billing.holds.redis_connection import RedisAddressError, RedisRefusedError
from billing.holds.redis_view import RedisView
from billing.keys import Keys
from billing.limits.factory import limit_store
from billing.rerating.simulator import Simulator
from billing.settlement.broker_address import BrokerAddressError
from billing.settlement.brokers import link_maker
from billing.settlement.day_fold import fold_days
from billing.settlement.delivery import Delivery, make_delivery
from billing.settlement.election import LEDGER_WORKER, Election
from billing.settlement.hold_updates import HoldUpdates
from billing.settlement.late_finals import directory_id
from billing.settlement.orphans import DatabaseOrphans
from billing.settlement.outbox import Outbox
from billing.settlement.reconcile import EVERY_SECONDS, Reconciler, Rounds
from billing.settlement.recovery import adopt_spool, recover
from billing.settlement.registry import Beat, Beating, Registration, SpoolReport, end_others
from billing.settlement.service import Chore, ElectedService, LedgerService
from billing.settlement.spool import Spool
from billing.settlement.subscriber import BrokerWorker
from billing.settlement.sweeper import Sweeper
from billing.settlement.worker import BATCH_MAX, BATCH_MAX_BESIDE, LedgerWorker
from llm_gateway import clock
from llm_gateway.config import password_of
from llm_gateway.first_start import FirstStart
from llm_gateway.gateway import Gateway
from llm_gateway.metrics import Metrics
from llm_gateway.shop import Shop, open_shop
from llm_gateway.start import StartError
from llm_gateway.tokens import TokenCounter
from llm_gateway.upstream.echo import EchoUpstream
from llm_gateway.upstream.http import HttpUpstream

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AsyncExitStack

    from billing.db.engine import Engine
    from billing.db.hot import SettleReport
    from billing.holds import HoldStore
    from billing.holds.database import DatabaseHoldStore
    from billing.limits import LimitStore
    from billing.settlement.registry import Pace
    from billing.settlement.service import Endless, Runnable
    from billing.shop.postings import OnPosted
    from llm_gateway.config import Config, ProviderConfig
    from llm_gateway.logs import LineWriter
    from llm_gateway.upstream import Upstream

ADOPT_SECONDS: Final = 5.0  # between two looks for spool files of dead processes
PARTITION_SECONDS: Final = 3600.0
GAUGE_SECONDS: Final = 2.0
SHOP_SECONDS: Final = 30.0  # between two looks for what a crash left half done
FOLD_SECONDS: Final = 60.0
RERATING_SECONDS: Final = 2.0  # between two looks for a run that was asked for

_log = logging.getLogger(__name__)


class Storage(msgspec.Struct, frozen=True, kw_only=True):
    """What gateways and workers have in common: the database, the holds, the way to the ledger."""

    config: Config
    database: Database
    hot: Engine
    holds: DatabaseHoldStore | RedisHoldStore
    outbox: Outbox
    bell: Bell
    process: str


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway process is made of."""

    config: Config
    gateway: Gateway
    database: Database
    hot: Engine
    holds: DatabaseHoldStore | RedisHoldStore
    keys: Keys
    books: PriceBooks
    accounts: Accounts
    shop: Shop
    simulator: Simulator
    outbox: Outbox
    ledger: Runnable | None  # None: a worker of its own settles
    publisher: Delivery | None  # None: no broker carries charges to the worker
    registration: Registration | None  # None: no other process can share the database
    chores: tuple[Endless, ...]
    metrics: Metrics
    log: LineWriter


class WorkerParts(msgspec.Struct, frozen=True, kw_only=True):
    """What a ledger worker is made of, as far as others look at it."""

    service: Runnable
    hot: Engine
    holds: DatabaseHoldStore | RedisHoldStore
    delivery: Delivery | None  # None: no broker carries charges to it
    registration: Registration
    metrics: Metrics


class Bell:
    """Rung when an event was written; whoever settles or publishes listens."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[], None]] = []

    def ring(self) -> None:
        """Tell all."""
        for listener in self.listeners:
            listener()


def secrets_of(config: Config) -> list[str]:
    """What must never appear in a log."""
    secrets = [provider.api_key.reveal() for provider in config.providers if provider.api_key]
    if config.auth.admin_token:
        secrets.append(config.auth.admin_token.reveal())
    urls = (config.database.url, config.guard.redis_url, config.broker.url)
    return secrets + [password for url in urls if (password := password_of(url))]


async def build_gateway(
    config: Config, stack: AsyncExitStack, log: LineWriter, *, pace: Pace | None = None
) -> Parts:
    """A gateway's parts, started in the order of dependence; the stack stops them in the opposite one.

    The lock on the data directory is held by the caller. `pace`: see Registration.
    """
    process = clock.new_event_id(clock.now_ms())
    database, hot = await _open_database(config, stack)
    spool = _spool(config, process)
    registration = None
    if is_shared(config):
        registration = await _register(
            config, stack, database, spool, process=process, pace=pace, may_hold=True
        )
    storage = await _build_storage(
        config, stack, database, hot, spool, process=process, may_hold=True
    )
    if registration is not None:
        _report_spool(registration, spool, storage.outbox)
    if config.database.is_sqlite:
        await _recover(storage, process)
    holds: HoldStore = storage.holds
    if registration is not None:
        holds = LivingHoldStore(storage.holds, registration)
    upstreams = {each.name: _upstream(each) for each in config.providers if each.on}
    for upstream in upstreams.values():
        stack.push_async_callback(upstream.close)
    metrics = Metrics()
    keys = Keys(database, now_ms=clock.now_ms, monotonic=clock.monotonic)
    books = PriceBooks(database, now_ms=clock.now_ms, monotonic=clock.monotonic)
    limits = await _limits(storage, stack)
    gateway = Gateway(
        config=config,
        keys=keys,
        books=books,
        holds=holds,
        guard=CreditBalanceGuard(
            holds, process=process, min_output_tokens=config.guard.min_output_tokens
        ),
        limits=limits,
        outbox=storage.outbox,
        upstreams=upstreams,
        tokens=TokenCounter(),
        metrics=metrics,
        log=log,
        is_alive=(lambda: registration.alive) if registration is not None else None,
    )
    publisher = _publisher(storage, metrics)
    shop = _shop(storage, gateway)
    return Parts(
        config=config,
        gateway=gateway,
        database=database,
        hot=hot,
        holds=storage.holds,
        keys=keys,
        books=books,
        accounts=_accounts(storage),
        shop=shop,
        simulator=_simulator(database, books, stack),
        outbox=storage.outbox,
        ledger=_embedded_ledger(storage, pace, metrics),
        publisher=publisher,
        registration=registration,
        chores=_own_chores(storage, registration, gateway, shop),
        metrics=metrics,
        log=log,
    )


async def _limits(storage: Storage, stack: AsyncExitStack) -> LimitStore:
    limits = limit_store(
        storage.holds,
        storage.database,
        call_seconds_max=storage.config.guard.call_seconds_max,
        monotonic=clock.monotonic,
    )
    await limits.start()
    stack.push_async_callback(limits.close)
    return limits


def _own_chores(
    storage: Storage, registration: Registration | None, gateway: Gateway, shop: Shop
) -> tuple[Endless, ...]:
    """What every gateway does from time to time, whoever settles."""
    chores: list[Endless] = [
        Chore(name="shop", seconds=SHOP_SECONDS, act=shop.resume),
        Chore(name="rerating", seconds=RERATING_SECONDS, act=shop.rerating.carry_on),
    ]
    if not storage.config.database.is_sqlite:
        chores.append(_adoption(storage))
    if registration is not None:
        chores.append(Beating(registration, partial(_on_registry, storage, registration, gateway)))
    return tuple(chores)


async def build_worker(
    config: Config, stack: AsyncExitStack, *, pace: Pace | None = None
) -> WorkerParts:
    """What `llm-gateway worker` runs."""
    process = clock.new_event_id(clock.now_ms())
    database, hot = await _open_database(config, stack)
    spool = _spool(config, process)
    # It holds nothing, and a recovery of Redis does not wait for it.
    registration = await _register(
        config, stack, database, spool, process=process, pace=pace, may_hold=False
    )
    storage = await _build_storage(
        config, stack, database, hot, spool, process=process, may_hold=False
    )
    _report_spool(registration, spool, storage.outbox)
    metrics = Metrics(takes_calls=False)
    settling, chores = _duties(storage, pace, metrics)
    delivery = settling if isinstance(settling, Delivery) else None
    if delivery is not None:
        metrics.brokers.append(delivery.figures)
    gauges = Chore(
        name="gauges", seconds=GAUGE_SECONDS, act=partial(_update_worker, storage, metrics)
    )
    beating = Beating(registration, partial(_on_registry, storage, registration, None))
    service = LedgerService(settling, [*chores, _adoption(storage), gauges, beating])
    storage.bell.listeners.append(service.notify)
    return WorkerParts(
        service=service,
        hot=hot,
        holds=storage.holds,
        delivery=delivery,
        registration=registration,
        metrics=metrics,
    )


async def _update_worker(storage: Storage, metrics: Metrics) -> None:
    metrics.note_backlog(await Backlog(storage.database).figures())
    metrics.spool_bytes = storage.outbox.spool_bytes()


async def build_first_start(config: Config, stack: AsyncExitStack) -> FirstStart:
    """What the first start works on, where no gateway runs in this process."""
    database, hot = await _open_database(config, stack)
    return FirstStart(
        config=config,
        books=PriceBooks(database, now_ms=clock.now_ms, monotonic=clock.monotonic),
        accounts=Accounts(database, hot, now_ms=clock.now_ms),
        keys=Keys(database, now_ms=clock.now_ms, monotonic=clock.monotonic),
    )


def is_shared(config: Config) -> bool:
    """Whether others may have to know if this process lives."""
    return not config.database.is_sqlite or config.guard.store != "database"


# -- the database and the holds ----------------------------------------------------------------


async def _open_database(config: Config, stack: AsyncExitStack) -> tuple[Database, Engine]:
    database = Database(config.database.url)
    stack.push_async_callback(database.dispose)
    hot = hot_database(
        config.database.url,
        clock=clock.now_ms,
        holds_here=config.guard.store == "database",
    )
    await hot.start()
    stack.push_async_callback(hot.close)
    return database, hot


def _spool(config: Config, process: str) -> Spool:
    return Spool(Path(config.server.data_dir) / "spool", process)


def _report_spool(registration: Registration, spool: Spool, outbox: Outbox) -> None:
    """From now on also of what neither database nor spool took."""
    registration.spool = msgspec.structs.replace(
        registration.spool, pending=lambda: spool.has_files() or not outbox.durable
    )


async def _register(  # noqa: PLR0913 - what a row says, each by name
    config: Config,
    stack: AsyncExitStack,
    database: Database,
    spool: Spool,
    *,
    process: str,
    pace: Pace | None,
    may_hold: bool,
) -> Registration:
    registration = Registration(
        database,
        process=process,
        new_id=lambda: clock.new_event_id(clock.now_ms()),
        now_ms=clock.now_ms,
        monotonic=clock.monotonic,
        pace=pace,
        spool=SpoolReport(
            directory=directory_id(Path(config.server.data_dir)), pending=spool.has_files
        ),
        may_hold=may_hold,
    )
    await registration.register()
    # Run late in the stack's unwinding: calls, outbox and spool are done with by then.
    stack.push_async_callback(registration.leave)
    if config.database.is_sqlite:
        # The lock on the data proves that every former process is gone.
        await end_others(database, process, clock.now_ms())
    return registration


async def _on_registry(
    storage: Storage, registration: Registration, gateway: Gateway | None, beat: Beat
) -> None:
    """What the registry said of this process: what it held under another id is not its own."""
    holds = storage.holds
    if beat is Beat.DEAD:
        if gateway is not None:
            assert isinstance(gateway.holds, LivingHoldStore)
            gateway.holds.disown(call.event_id for call in gateway.calls)
            gateway.guard.process = registration.process
        if isinstance(holds, RedisHoldStore):
            holds.process = registration.process
    elif isinstance(holds, RedisHoldStore):
        await holds.rebuild("the database was restored from a backup")


async def _build_storage(  # noqa: PLR0913 - its parts
    config: Config,
    stack: AsyncExitStack,
    database: Database,
    hot: Engine,
    spool: Spool,
    *,
    process: str,
    may_hold: bool,
) -> Storage:
    try:
        holds = hold_store(
            config.guard,
            hot=hot,
            database=database,
            process=process,
            now_ms=clock.now_ms,
            may_hold=may_hold,
        )
        await holds.start()
    except (RedisAddressError, RedisRefusedError) as error:
        raise StartError(f"[guard] redis_url: {error}") from error
    stack.push_async_callback(holds.close)
    bell = Bell()
    tells = {"on_recorded": holds.recorded} if isinstance(holds, RedisHoldStore) else {}
    outbox = Outbox(hot, spool, on_written=bell.ring, **tells)
    await outbox.start()
    stack.push_async_callback(outbox.close)
    return Storage(
        config=config,
        database=database,
        hot=hot,
        holds=holds,
        outbox=outbox,
        bell=bell,
        process=process,
    )


async def _recover(storage: Storage, process: str) -> None:
    """The lock on the data proves that every former process is gone: what it left is ours to settle."""
    found = await recover(storage.hot, storage.outbox, process=process, clock=clock.now_ms)
    if found.orphans:
        _log.warning("%d calls of a former process broke off and were estimated", found.orphans)


def _accounts(storage: Storage) -> Accounts:
    return Accounts(
        storage.database, storage.hot, now_ms=clock.now_ms, on_posted=_on_posted(storage)
    )


def _shop(storage: Storage, gateway: Gateway) -> Shop:
    config = storage.config
    return open_shop(
        storage.database,
        storage.hot,
        gateway.books,
        holds=gateway.holds,
        process=lambda: gateway.guard.process,
        now_ms=clock.now_ms,
        new_id=clock.new_event_id,
        on_posted=_on_posted(storage),
        call_seconds_max=config.guard.call_seconds_max,
        mock_payments=config.payments.mock,
    )


def _on_posted(storage: Storage) -> OnPosted | None:
    # Holds in Redis go by a balance of their own, which a grant must reach.
    return storage.holds.refresh if isinstance(storage.holds, RedisHoldStore) else None


def _simulator(database: Database, books: PriceBooks, stack: AsyncExitStack) -> Simulator:
    simulator = Simulator(database, books, monotonic=clock.monotonic)
    stack.push_async_callback(simulator.close)
    return simulator


def _publisher(storage: Storage, metrics: Metrics) -> Delivery | None:
    """What sends this gateway's charges at once; others would send them a little later."""
    if storage.config.broker.kind == "database":
        return None
    publisher = _delivery(storage, None)
    storage.bell.listeners.append(publisher.notify)
    metrics.brokers.append(publisher.figures)
    return publisher


def redis_view(
    config: Config, holds: DatabaseHoldStore | RedisHoldStore, database: Database
) -> RedisView | None:
    """What an operator sees of holds in Redis; None: they are in the database."""
    if not isinstance(holds, RedisHoldStore):
        return None
    return RedisView(
        holds, database, now_ms=clock.now_ms, call_seconds_max=config.guard.call_seconds_max
    )


# -- settling ----------------------------------------------------------------------------------


def _embedded_ledger(storage: Storage, pace: Pace | None, metrics: Metrics) -> Runnable | None:
    """Who settles inside of `serve`: with SQLite this process, else the one that is elected."""
    config = storage.config
    if not config.ledger_worker.embedded:
        return None
    service: Runnable
    if config.database.is_sqlite:
        service = LedgerService(*_duties(storage, pace, metrics))
        service.notify()  # what a former process left
    else:
        election = Election(storage.database, LEDGER_WORKER)
        service = ElectedService(election, lambda: LedgerService(*_duties(storage, pace, metrics)))
    storage.bell.listeners.append(service.notify)
    return service


def _duties(
    storage: Storage, pace: Pace | None, metrics: Metrics
) -> tuple[Runnable, list[Endless]]:
    """Who posts charges, and what else has to be done by whoever does so."""
    config, database, holds = storage.config, storage.database, storage.holds
    updates = HoldUpdates(holds)
    settling = _settling(storage, updates, metrics)
    reconciler = Reconciler(
        database,
        now_ms=clock.now_ms,
        call_seconds_max=config.guard.call_seconds_max,
        guard=redis_view(config, holds, database),
    )
    rounds = Rounds(reconciler, monotonic=clock.monotonic, on_report=metrics.reconciled)
    chores: list[Endless] = [Chore(name="reconcile", seconds=EVERY_SECONDS, act=rounds.make)]
    chores.append(Chore(name="days", seconds=FOLD_SECONDS, act=partial(_fold_days, database)))
    if is_shared(config):
        sweeper = Sweeper(
            database,
            storage.hot,
            holds if isinstance(holds, RedisHoldStore) else DatabaseOrphans(database),
            call_seconds_max=config.guard.call_seconds_max,
            now_ms=clock.now_ms,
            monotonic=clock.monotonic,
            on_estimate=settling.notify,
            pace=pace,
            spool_owners=storage.outbox.spool_owners,
        )
        chores.append(Chore(name="sweeper", seconds=sweeper.pace.beat_seconds, act=sweeper.look))
    if isinstance(holds, RedisHoldStore):
        chores.append(updates)
    if not config.database.is_sqlite:
        act = partial(_keep_partitions, database)
        chores.append(Chore(name="partitions", seconds=PARTITION_SECONDS, act=act))
    return settling, chores


def _settling(storage: Storage, updates: HoldUpdates, metrics: Metrics) -> Runnable:
    """Straight from the outbox, or as the broker's messages name its rows."""
    if storage.config.broker.kind == "database":
        batch_max = BATCH_MAX if storage.config.database.is_sqlite else BATCH_MAX_BESIDE
        alone = LedgerWorker(storage.hot, clock=clock.now_ms, holds=updates, batch_max=batch_max)
        metrics.settlers.append(alone)
        return alone

    async def tell(report: SettleReport) -> None:
        await updates.tell(report.applied)

    worker = BrokerWorker(storage.hot, clock=clock.now_ms, on_settled=tell)
    metrics.settlers.append(worker)
    return _delivery(storage, worker)


def _delivery(storage: Storage, worker: BrokerWorker | None) -> Delivery:
    broker = storage.config.broker
    assert broker.kind != "database"
    try:
        links = link_maker(broker.kind, broker.url, process=storage.process)
    except BrokerAddressError as error:
        raise StartError(f"[broker] url: {error}") from error
    return make_delivery(links, storage.hot, clock=clock.now_ms, worker=worker)


async def _fold_days(database: Database) -> None:
    """Days that are over, so that consumption need not read all of their quarters."""
    if days := await fold_days(database, clock.now_ms()):
        _log.info("folded %d days of accounts", days)


async def _keep_partitions(database: Database) -> None:
    """Months ahead get their partitions before anything has to be written into them."""
    async with database.write() as connection:
        if made := await keep_partitions(connection):
            _log.info("made %s", ", ".join(made))


def _adoption(storage: Storage) -> Chore:
    """Spool files of dead processes in the same directory are replayed by whoever sees them."""
    act = partial(_adopt, storage)
    return Chore(name="spool-adoption", seconds=ADOPT_SECONDS, act=act)


async def _adopt(storage: Storage) -> None:
    if adopted := await adopt_spool(storage.database, storage.outbox):
        _log.warning("%d charges came out of the spool of a dead process", adopted)


def _upstream(provider: ProviderConfig) -> Upstream:
    return EchoUpstream(provider) if provider.kind == "echo" else HttpUpstream(provider)
