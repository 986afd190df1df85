"""Delivery: from outbox to ledger by a broker; the one place that puts its parts together."""

import asyncio
from collections.abc import Callable

import msgspec

from billing.db.outbox import OutboxDatabase
from billing.settlement.brokers import BrokerConnection, LinkMaker
from billing.settlement.publisher import RESEND_SECONDS, ChargePublisher
from billing.settlement.subscriber import BrokerWorker


class BrokerFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What metrics show of a delivery; counts since the process started."""

    up: bool  # connected, and not seen to fail
    outages: int
    published: int  # messages sent, repeats included
    failures: int  # rounds that broker or database failed
    unreadable: int  # messages that went into quarantine
    settled_overdue: int  # charges settled without a message
    untold: int  # settled charges that others were never told of


class Delivery:
    """A publisher, and with a worker a subscriber, over one connection to the broker."""

    def __init__(
        self, connection: BrokerConnection, publisher: ChargePublisher, worker: BrokerWorker | None
    ) -> None:
        self.connection = connection
        self.publisher = publisher
        self.worker = worker

    def notify(self) -> None:
        """An event was written to the outbox."""
        self.publisher.notify()

    def figures(self) -> BrokerFigures:
        """How it stands now."""
        worker = self.worker
        return BrokerFigures(
            up=self.connection.up,
            outages=self.connection.outages,
            published=self.publisher.published,
            failures=self.publisher.failures + (worker.failures if worker else 0),
            unreadable=worker.strays if worker else 0,
            settled_overdue=worker.settled_overdue if worker else 0,
            untold=worker.untold_dropped if worker else 0,
        )

    async def run(self) -> None:
        """Serve until `stop`: what is written by then is sent, if the broker is there."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.connection.run(), name="broker")
            sending = group.create_task(self.publisher.run(), name="charge-publisher")
            if self.worker is not None:
                group.create_task(self.worker.run(), name="ledger-worker")
            await asyncio.wait([sending])
            self.connection.stop()

    def stop(self) -> None:
        """Ask `run` to end in order: the worker, the publisher, the connection."""
        if self.worker is not None:
            self.worker.stop()
        self.publisher.stop()


def make_delivery(
    make_link: LinkMaker,
    database: OutboxDatabase,
    *,
    clock: Callable[[], int],
    worker: BrokerWorker | None,
    resend_seconds: float = RESEND_SECONDS,
) -> Delivery:
    """What a process needs for `broker.kind` kafka or redis; without a worker it only sends.

    `make_link` is what `brokers.link_maker` gives. `clock`: milliseconds since the epoch.
    """
    handler = worker.receive if worker is not None else None
    connection = BrokerConnection(lambda: make_link(handler))
    if worker is not None:
        worker.use(connection)
    publisher = ChargePublisher(database, connection, clock=clock, resend_seconds=resend_seconds)
    return Delivery(connection, publisher, worker)
