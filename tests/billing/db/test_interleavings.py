"""Any interleaving of holds, charges, settlement, cancellation and crashes keeps every micro-credit."""

import asyncio
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from billing.db import engine as engines
from billing.db.hot import EventConflictError
from billing.db.invariants import check_invariants
from billing.events import Finish
from billing.holds import Granted, HoldBeat
from tests.support.migrated import migrated
from tests.support.money import (
    T0,
    Place,
    cancelled,
    charge,
    hold,
    new_id,
    purchase,
    rows,
    url_of,
    violations,
)
from tests.support.services import PostgresServer

ACCOUNTS = ("alice", "bob")
# Interleavings, not the disk, are tried here: thousands of fsyncs would only take time.
MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


class Call:
    """What the model knows of an admitted call."""

    def __init__(self, event_id: str, account: str, held: int) -> None:
        self.event_id = event_id
        self.account = account
        self.held = held
        self.progress = 0
        self.orphaned = False
        self.said: Finish | None = None  # the owner's word
        self.cost = 0  # what it shall have cost in the end


class MoneyMachine(RuleBasedStateMachine):
    """The hot database against a model that only knows who bought and who spent how much."""

    calls = Bundle("calls")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.place = self.new_place()
        self.hot = engines.hot_database(url_of(self.place), clock=lambda: T0)
        self.runner.run(self.hot.start())
        self.bought = dict.fromkeys(ACCOUNTS, 0)
        self.all_calls: list[Call] = []
        self.process = 1
        self.late_finals = False  # a final after its estimate was posted may pass the balance

    def teardown(self) -> None:
        self.drain()
        for account in ACCOUNTS:
            spent = sum(call.cost for call in self.all_calls if call.account == account)
            assert self.balance(account) == (self.bought[account] - spent)
        self.runner.run(self.hot.close())
        self.runner.close()
        self.drop_place()

    def new_place(self) -> Place:
        self.directory = tempfile.TemporaryDirectory(dir=MEMORY)
        return migrated(Path(self.directory.name))

    def drop_place(self) -> None:
        self.directory.cleanup()

    def drain(self) -> None:
        """Charge what still runs as a restart would, and settle everything."""

        async def restart() -> None:
            await self.hot.adopt_orphans("last", T0)
            while (await self.hot.settle_pending(7)).remaining:
                pass

        self.orphan_all()
        self.runner.run(restart())
        assert rows(self.place, "SELECT count(*) FROM holds") == [(0,)]
        assert rows(self.place, "SELECT count(*) FROM outbox") == [(0,)]
        assert rows(self.place, "SELECT COALESCE(sum(held), 0) FROM accounts") == [(0,)]
        self.all_invariants()

    def balance(self, account: str) -> int:
        found = rows(self.place, "SELECT balance FROM accounts WHERE account = ?", account)
        return int(str(found[0][0])) if found else 0

    def orphan_all(self) -> None:
        for call in self.all_calls:
            if call.said is None and not call.orphaned:
                call.orphaned = True
                call.cost = call.progress

    @rule(account=st.sampled_from(ACCOUNTS), amount=st.integers(1, 500), twice=st.booleans())
    def buy(self, account: str, amount: int, twice: bool) -> None:
        entry = purchase(amount, account=account)

        async def post() -> None:
            await self.hot.post([entry])
            if twice:
                await self.hot.post([entry])

        self.runner.run(post())
        self.bought[account] += amount

    @rule(
        target=calls,
        wanted=st.lists(
            st.tuples(st.sampled_from(ACCOUNTS), st.integers(0, 60), st.integers(0, 200)),
            min_size=1,
            max_size=6,
        ),
    )
    def reserve(self, wanted: list[tuple[str, int, int]]) -> object:
        """Several at once, some of them asked twice."""
        requests = [
            hold(
                new_id(),
                account=account,
                minimum=low,
                wanted=low + more,
                process=f"p{self.process}",
            )
            for account, low, more in wanted
        ]

        async def ask() -> list[object]:
            answers = asyncio.gather(*(self.hot.reserve(request) for request in requests))
            repeated = asyncio.gather(*(self.hot.reserve(request) for request in requests[:1]))
            return [*await answers, *await repeated]

        *answers, repeated = self.runner.run(ask())
        if isinstance(answers[0], Granted):
            assert repeated == answers[0]
        made = [
            Call(request.hold_id, request.account, answer.amount)
            for request, answer in zip(requests, answers, strict=True)
            if isinstance(answer, Granted)
        ]
        if isinstance(repeated, Granted) and not isinstance(answers[0], Granted):
            made.append(Call(requests[0].hold_id, requests[0].account, repeated.amount))
        self.all_calls += made
        return multiple(*made)

    @rule(call=calls, part=st.integers(0, 100))
    def progress(self, call: Call, part: int) -> None:
        if call.said is not None or call.orphaned:
            return
        call.progress = max(call.progress, call.held * part // 100)

        async def beat() -> None:
            await self.hot.heartbeat([HoldBeat(call.event_id, call.held, call.progress)])

        self.runner.run(beat())

    @rule(call=calls, more=st.integers(1, 100))
    def extend(self, call: Call, more: int) -> None:
        if call.said is not None or call.orphaned:
            return

        async def ask() -> object:
            return await self.hot.extend(call.event_id, call.held + more)

        if isinstance(self.runner.run(ask()), Granted):
            call.held += more

    @rule(call=calls, part=st.integers(0, 100), repeats=st.integers(1, 2))
    def finish(self, call: Call, part: int, repeats: int) -> None:
        """The owner's word; that of an orphaned call comes out of a spool, late."""
        cost = max(call.progress, call.held * part // 100)
        self.say(call, charge(call.event_id, cost, account=call.account), cost, repeats)

    @rule(call=calls)
    def cancel(self, call: Call) -> None:
        self.say(call, cancelled(call.event_id, account=call.account), 0, 1)

    def say(self, call: Call, finish: Finish, cost: int, repeats: int) -> None:
        async def record() -> list[object]:
            said = [self.hot.record(finish) for _ in range(repeats)]
            return list(await asyncio.gather(*said, return_exceptions=True))

        answers = self.runner.run(record())
        if call.said is None:
            assert answers == [None] * repeats
            self.late_finals = self.late_finals or call.orphaned
            call.said, call.cost = finish, cost
        elif call.said == finish:
            assert answers == [None] * repeats
        else:
            assert all(isinstance(answer, EventConflictError) for answer in answers)

    @rule(limit=st.integers(1, 9))
    def settle(self, limit: int) -> None:
        async def ask() -> int:
            return (await self.hot.settle_pending(limit)).quarantined

        assert self.runner.run(ask()) == 0

    @rule()
    def crash(self) -> None:
        """The process is gone, and the next one adopts what it held."""
        self.process += 1

        async def restart() -> None:
            await self.hot.close()
            self.hot = engines.hot_database(url_of(self.place), clock=lambda: T0)
            await self.hot.start()
            await self.hot.adopt_orphans(f"p{self.process}", T0)

        self.runner.run(restart())
        self.orphan_all()

    @invariant()
    def all_invariants(self) -> None:
        assert violations(self.place) == []

    @invariant()
    def nobody_overspends(self) -> None:
        if self.late_finals:
            return
        assert rows(self.place, "SELECT account FROM accounts WHERE balance < held") == []


TestInterleavings = MoneyMachine.TestCase
TestInterleavings.settings = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


class PostgresMoneyMachine(MoneyMachine):
    """The same on PostgreSQL."""

    server: PostgresServer

    def new_place(self) -> Place:
        return self.server.new_database()

    def drop_place(self) -> None:
        self.server.drop_database(url_of(self.place))


@pytest.mark.timeout(240)
def test_interleavings_on_postgres(postgres: PostgresServer) -> None:
    class Machine(PostgresMoneyMachine):
        server = postgres

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=8,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )


def test_the_checks_see_what_is_wrong(tmp_path: Path) -> None:
    path = migrated(tmp_path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "INSERT INTO accounts (account, balance, held, seq, total_rewarded, created_at,"
            " updated_at) VALUES ('alice', 5, 3, 2, 5, 0, 0)"
        )
        connection.execute(
            "INSERT INTO usage (event_id, revision, account, key_id, scene, provider,"
            " model_requested, model_sent, book, rule, quality, usage_source, amount, ceiling,"
            " payload_hash, started_at, finished_at)"
            " VALUES ('c1', 2, 'alice', '', '', '', '', '', 1, '', '', '', 7, 7, '', 0, 0)"
        )
        problems = check_invariants(connection)
    assert {problem.split()[0] for problem in problems} == {"R1", "R2", "R3", "R4", "R6"}
