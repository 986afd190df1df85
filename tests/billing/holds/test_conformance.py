"""Every hold store does what the model does: the same operations, the same answers, the same holds.

The model is tests/model: its guard and its ledger, told of every settlement at once. One store per
kind serves all examples; each example has accounts of its own.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from billing.db.hot import EventConflictError, HotDatabase
from billing.events import Finish, Revision
from billing.holds import Granted, GuardUnavailableError, HoldBeat, HoldStore, Refused
from billing.holds.database import DatabaseHoldStore
from tests.model.guard_model import Answer, Beat, Guard
from tests.model.ledger_model import Event, Ledger, Recorded
from tests.support.migrated import migrated
from tests.support.money import (
    Place,
    cancelled,
    charge,
    hold,
    hot_database,
    new_id,
    purchase,
    rows,
)
from tests.support.redis_guard import Guards, guards, held
from tests.support.redis_server import RedisServer
from tests.support.services import pg_dsn

EPOCH = 1
PROCESS = "p1"
EXAMPLES = {"sqlite": 30, "postgres": 15, "redis-sqlite": 15, "redis-postgres": 10}
_HOLDING = (
    "SELECT a.account, a.held, h.hold_id, h.amount FROM accounts a"
    " LEFT JOIN holds h ON h.account = a.account WHERE a.account IN ($1, $2)"
)
_BALANCES = "SELECT account, balance FROM accounts WHERE account IN ($1, $2)"
_examples = count(1)


class Wished(msgspec.Struct, frozen=True):
    """What the model answers to one asking of several at once."""

    answer: Granted | Refused | Answer
    first_answer: Granted | Refused | Answer  # to the same hold, if it was asked for before
    held_after: int  # of the account, once all are answered


class Store:
    """A hold store in the database, and the settlement beside it."""

    keeps_spent = False  # an estimate of all that was held takes the row with it

    def is_right(self, answer: Granted | Refused, wished: Wished) -> bool:
        """Whether an answer is what the model says; here nothing else is right."""
        return answer == wished.answer

    def __init__(self, place: Place, hot: HotDatabase) -> None:
        self.place = place
        self.hot = hot
        self.holds: HoldStore = DatabaseHoldStore(hot)
        self.audit: asyncpg.Connection[asyncpg.Record] | None = None

    async def buy(self, account: str, amount: int) -> None:
        await self.hot.post([purchase(amount, account=account)])

    async def record(self, finish: Finish) -> None:
        await self.hot.record(finish)

    async def settle(self, *, lost: bool) -> None:
        """Post all that waits; `lost`: what is told of it gets lost, and is told again."""
        while (await self.hot.settle_pending(3)).remaining:
            pass

    async def ask(self, query: str, *values: str) -> list[tuple[object, ...]]:
        """What a query finds, on a connection that stays open."""
        if self.audit is None:
            return rows(self.place, query, *values)
        return [tuple(row) for row in await self.audit.fetch(query, *values)]

    async def holding(self, accounts: tuple[str, ...]) -> dict[str, dict[str, int]]:
        """The holds of each account, checked against what the account says is held."""
        found: dict[str, dict[str, int]] = {account: {} for account in accounts}
        totals = dict.fromkeys(accounts, 0)
        for account, total, hold_id, amount in await self.ask(_HOLDING, *accounts):
            totals[str(account)] = int(str(total))
            if hold_id is not None:
                found[str(account)][str(hold_id)] = int(str(amount))
        assert totals == {account: sum(holds.values()) for account, holds in found.items()}
        return found


class StoreInPostgres(Store):
    """Holds in PostgreSQL."""

    def is_right(self, answer: Granted | Refused, wished: Wished) -> bool:
        """Two askings of one hold that meet in a turn are one, and get the answer of the first."""
        return answer in (wished.answer, wished.first_answer)


class StoreInRedis(Store):
    """Holds in Redis, the ledger in SQLite or PostgreSQL."""

    keeps_spent = True  # as the model: a hold of nothing, until the final or the longest call

    def __init__(self, place: Place, made: Guards, server: RedisServer) -> None:
        super().__init__(place, made.hot)
        self.holds = self.redis = made.store
        self.server = server

    def is_right(self, answer: Granted | Refused, wished: Wished) -> bool:
        """Before it refuses it asks once more: by then those asked after it may hold more."""
        if isinstance(answer, Refused) and isinstance(wished.answer, Refused):
            as_wished = msgspec.structs.replace(answer, held=wished.answer.held)
            return (
                as_wished == wished.answer
                and wished.answer.held <= answer.held <= wished.held_after
            )
        return answer == wished.answer

    async def buy(self, account: str, amount: int) -> None:
        await super().buy(account, amount)
        await self.insist(lambda: self.redis.refresh([account]))

    async def record(self, finish: Finish) -> None:
        await self.hot.record(finish)
        if finish.event.revision == Revision.FINAL:
            self.redis.recorded(finish)

    async def settle(self, *, lost: bool) -> None:
        remaining = True
        while remaining:
            report = await self.hot.settle_pending(3)
            remaining = report.remaining
            if not lost:
                await self.insist(partial(self.redis.apply, report.applied))
        if lost:
            await self.insist(self.redis.resend)

    async def insist(self, tell: Callable[[], Awaitable[object]]) -> None:
        """A server that was not let run for a second counts as away, but nothing is lost here."""
        async with asyncio.timeout(60):
            while True:
                try:
                    await tell()
                except GuardUnavailableError:
                    assert self.redis.recoveries == 0
                    await asyncio.sleep(0.05)
                else:
                    return

    async def holding(self, accounts: tuple[str, ...]) -> dict[str, dict[str, int]]:
        return {account: await held(self.server, account) for account in accounts}


@asynccontextmanager
async def in_database(place: Place) -> AsyncIterator[Store]:
    kind = StoreInPostgres if isinstance(place, str) else Store
    async with hot_database(place) as hot, audited(kind(place, hot)) as store:
        yield store


@asynccontextmanager
async def in_redis(place: Path | str, server: RedisServer) -> AsyncIterator[Store]:
    """With the ledger in a new SQLite file in a directory, or in the PostgreSQL of an address."""
    directory, url = (Path(), place) if isinstance(place, str) else (place, "")
    async with guards(server, directory, url=url) as made:
        file: Place = url or directory / "gateway.db"
        async with audited(StoreInRedis(file, made, server)) as store:
            yield store


@asynccontextmanager
async def audited(store: Store) -> AsyncIterator[Store]:
    """On PostgreSQL a connection for the auditor, which stays open."""
    if not isinstance(store.place, str):
        yield store
        return
    store.audit = await asyncpg.connect(pg_dsn(store.place))
    try:
        yield store
    finally:
        await store.audit.close()


class Call:
    """A hold that was granted."""

    def __init__(self, event_id: str, account: str, amount: int) -> None:
        self.event_id = event_id
        self.account = account
        self.amount = amount
        self.progress = 0
        self.runs = True  # nobody has said yet what it cost


class Conformance(RuleBasedStateMachine):
    """Both are asked the same, and compared."""

    calls = Bundle("calls")

    def __init__(self, runner: asyncio.Runner, store: Store) -> None:
        super().__init__()
        self.runner = runner
        self.store = store
        example = next(_examples)
        self.accounts = tuple(f"{name}-{example}" for name in ("alice", "bob"))
        self.ledger = Ledger(self.accounts, age_max=10**9)
        self.guard = Guard()
        self.admitted: list[Call] = []
        self.spent: set[str] = set()  # holds of which an estimate left nothing

    @initialize(amounts=st.tuples(st.integers(1, 500), st.integers(1, 500)))
    def open_accounts(self, amounts: tuple[int, int]) -> None:
        for account, amount in zip(self.accounts, amounts, strict=True):
            self.ledger.buy(account, amount)
            self.guard.mark(EPOCH, account, 1, may_make=True)
            self.guard.load(EPOCH, 1, self.ledger.read(account), [])

            async def open_account(account: str = account, amount: int = amount) -> None:
                await self.store.buy(account, amount)
                await self.store.holds.reserve(hold(new_id(), account=account, minimum=10**9))

            self.runner.run(open_account())

    @rule(who=st.integers(0, 1), amount=st.integers(1, 300))
    def buy(self, who: int, amount: int) -> None:
        account = self.accounts[who]
        self.guard.apply(self.ledger.buy(account, amount))
        self.runner.run(self.store.buy(account, amount))

    @rule(
        target=calls,
        wanted=st.lists(
            st.tuples(st.integers(0, 1), st.integers(0, 80), st.integers(0, 300)),
            min_size=1,
            max_size=5,
        ),
        repeated=st.booleans(),
    )
    def reserve(self, wanted: list[tuple[int, int, int]], repeated: bool) -> object:
        """Several at once, in one order; the first of them perhaps twice."""
        asked = [
            hold(new_id(), account=self.accounts[who], minimum=low, wanted=low + more)
            for who, low, more in wanted
        ]
        asked += asked[:1] if repeated else []

        async def ask() -> list[Granted | Refused]:
            answers = asyncio.gather(*(self.store.holds.reserve(each) for each in asked))
            return list(await answers)

        expected = [
            self.guard.reserve(
                EPOCH, each.account, each.hold_id, each.minimum, each.wanted, PROCESS
            )
            for each in asked
        ]
        first = {
            each.hold_id: answer for each, answer in zip(asked[::-1], expected[::-1], strict=True)
        }
        answers = self.runner.run(ask())
        for each, answer, expecting in zip(asked, answers, expected, strict=True):
            held_after = self.guard.slots[each.account].held
            wished = Wished(expecting, first[each.hold_id], held_after)
            assert self.store.is_right(answer, wished), (answer, wished)
        granted = {
            each.hold_id: Call(each.hold_id, each.account, answer.amount)
            for each, answer in zip(asked, expected, strict=True)
            if isinstance(answer, Granted)
        }
        self.admitted += granted.values()
        return multiple(*granted.values())

    @rule(call=calls, more=st.integers(-50, 200))
    def extend(self, call: Call, more: int) -> None:
        if not call.runs:
            return
        total = max(0, call.amount + more)
        expected = self.guard.extend(EPOCH, call.account, call.event_id, total)
        assert not isinstance(expected, Answer)

        async def ask() -> Granted | Refused:
            return await self.store.holds.extend(call.event_id, total)

        assert self.runner.run(ask()) == expected
        if isinstance(expected, Granted):
            call.amount = expected.amount

    @rule(call=calls, part=st.integers(0, 100), late=st.booleans())
    def heartbeat(self, call: Call, part: int, late: bool) -> None:
        """A late one comes after the call's end, and tells of a smaller hold."""
        if not call.runs and not late:
            return
        amount = call.amount // 2 if late else call.amount
        progress = amount * part // 100
        if call.runs:
            call.progress = max(call.progress, progress)
            beat = Beat(call.event_id, amount, progress)
            self.guard.beat(EPOCH, call.account, PROCESS, [beat], register=False)

        async def tell() -> None:
            await self.store.holds.heartbeat([HoldBeat(call.event_id, amount, progress)])

        if call.runs or self.guard.amount(call.account, call.event_id) < 0:
            self.runner.run(tell())

    @rule(call=calls, part=st.integers(0, 100))
    def finish(self, call: Call, part: int) -> None:
        """The owner's word, or a second one that may say something else."""
        cost = max(call.progress, call.amount * part // 100)
        self.say(call, Revision.FINAL, cost)

    @rule(call=calls)
    def give_up(self, call: Call) -> None:
        self.cancel(call)

    def cancel(self, call: Call) -> None:
        said = self.say(call, Revision.FINAL, 0, cancels=True)
        if said is not Recorded.CONFLICT:
            self.guard.cancel(call.account, call.event_id)

    @rule(call=calls)
    def sweep(self, call: Call) -> None:
        """Its process is taken for dead."""
        if call.runs:
            self.say(call, Revision.ESTIMATE, call.progress)

    def say(self, call: Call, revision: int, amount: int, *, cancels: bool = False) -> Recorded:
        event = Event(
            call.event_id, call.account, PROCESS, revision, amount, call.amount, 0, cancels
        )
        if cancels:
            finish = cancelled(call.event_id, account=call.account)
        else:
            finish = charge(
                call.event_id,
                amount,
                account=call.account,
                revision=revision,
                ceiling=call.amount,
            )
        expected = self.ledger.record(event)

        async def tell() -> bool:
            try:
                if cancels:
                    await self.store.holds.cancel(finish)
                else:
                    await self.store.record(finish)
            except EventConflictError:
                return True
            return False

        assert self.runner.run(tell()) is (expected is Recorded.CONFLICT)
        call.runs = False
        return expected

    @rule(lost=st.booleans())
    def post_what_waits(self, lost: bool) -> None:
        self.settle(lost=lost)

    def settle(self, *, lost: bool) -> None:
        waiting = sorted(self.ledger.outbox.values(), key=lambda e: (e.event_id, e.revision))
        for applied in self.ledger.settle(waiting, set()):
            self.guard.apply(applied)
            self.spent |= {hold_id for hold_id, residual in applied.estimates if residual == 0}
        self.runner.run(self.store.settle(lost=lost))

    @invariant()
    def holds_are_the_same(self) -> None:
        if self.guard.slots:
            expected = {
                account: {
                    hold_id: hold.amount
                    for hold_id, hold in slot.holds.items()
                    if self.store.keeps_spent or hold_id not in self.spent
                }
                for account, slot in self.guard.slots.items()
            }
            found = self.runner.run(self.store.holding(self.accounts))
            assert found == expected

    def teardown(self) -> None:
        """Whoever is left over ends, so that the next example finds nothing waiting."""
        for call in self.admitted:
            if call.runs:
                self.cancel(call)
        self.settle(lost=False)
        found = self.runner.run(self.store.ask(_BALANCES, *self.accounts))
        assert {str(account): balance for account, balance in found} == (
            self.ledger.balance if self.guard.slots else {}
        )


@pytest.fixture(params=EXAMPLES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def served(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[tuple[asyncio.Runner, Store]]:
    match kind:
        case "sqlite":
            opened = in_database(migrated(tmp_path))
        case "postgres":
            opened = in_database(request.getfixturevalue("postgres_url"))
        case "redis-sqlite":
            opened = in_redis(tmp_path, request.getfixturevalue("redis"))
        case _:
            url = request.getfixturevalue("postgres_url")
            opened = in_redis(url, request.getfixturevalue("redis"))
    with asyncio.Runner() as runner:
        store = runner.run(opened.__aenter__())
        try:
            yield runner, store
        finally:
            runner.run(opened.__aexit__(None, None, None))


def test_it_does_what_the_model_does(kind: str, served: tuple[asyncio.Runner, Store]) -> None:
    run_state_machine_as_test(
        lambda: Conformance(*served),  # type: ignore[arg-type]
        settings=settings(
            max_examples=EXAMPLES[kind],
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("part", [0, 50, 100])
@pytest.mark.parametrize("amount", [0, 1, 100])
def test_estimates_leave_what_the_model_leaves(
    served: tuple[asyncio.Runner, Store], amount: int, part: int
) -> None:
    """All, nothing or half of what is held was spent when its process was taken for dead."""
    machine = Conformance(*served)
    machine.open_accounts(amounts=(500, 500))
    machine.reserve(wanted=[(0, amount, 0)], repeated=False)
    (call,) = machine.admitted
    machine.heartbeat(call=call, part=part, late=False)
    machine.sweep(call=call)
    for _ in range(2):
        machine.settle(lost=False)
        machine.holds_are_the_same()
    machine.finish(call=call, part=100)
    machine.settle(lost=True)
    machine.holds_are_the_same()
    machine.teardown()
