"""A link to a broker that is a list: what was sent, and whether it works, for tests to look at and set."""

from collections.abc import Sequence

from billing.settlement.brokers import BrokerUnavailableError
from billing.settlement.messages import Outgoing


class FakeLink:
    """`works` set to False: it opens, sends and answers no more."""

    def __init__(self) -> None:
        self.works = True
        self.sent: list[Outgoing] = []
        self.opened = 0
        self.closed = 0

    async def open(self) -> None:
        self.opened += 1
        self._fail_if_broken()

    async def close(self) -> None:
        self.closed += 1

    async def send(self, messages: Sequence[Outgoing]) -> None:
        self._fail_if_broken()
        self.sent += messages

    async def check(self) -> None:
        self._fail_if_broken()

    def _fail_if_broken(self) -> None:
        if not self.works:
            raise BrokerUnavailableError("told so by the test")
