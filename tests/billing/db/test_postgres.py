"""What only PostgreSQL has to stand: many processes at once, dead workers, a server that goes away."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncpg
import msgspec
import pytest

from billing.db import migrate
from billing.db.hot import ANSWER_SECONDS, DatabaseUnavailableError
from billing.db.postgres import (
    ATTEMPTS_ALONE,
    ATTEMPTS_MAX,
    HALF_MIN,
    PostgresHotDatabase,
    halves,
)
from billing.db.postgres_sql import LEASE_MS, Claimed
from billing.db.rows import Waiting
from billing.holds import Applied, Granted, HoldBeat, Refused
from tests.support.money import (
    T0,
    cancelled,
    charge,
    estimate,
    execute,
    hold,
    hot_database,
    new_id,
    purchase,
    rows,
    violations,
)
from tests.support.services import PostgresServer, pg_dsn

NOW = "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"


@asynccontextmanager
async def engine(url: str, *, holds_here: bool = True) -> AsyncIterator[PostgresHotDatabase]:
    hot = PostgresHotDatabase(url, clock=lambda: T0, holds_here=holds_here)
    await hot.start()
    try:
        yield hot
    finally:
        await hot.close()


@pytest.fixture
async def hot(postgres_url: str) -> AsyncIterator[PostgresHotDatabase]:
    async with engine(postgres_url) as started:
        yield started
    assert violations(postgres_url) == []


@pytest.fixture
def durable_url(durable_postgres: PostgresServer) -> Iterator[str]:
    url = durable_postgres.new_database()
    yield url
    durable_postgres.drop_database(url)


def held(url: str, account: str = "alice") -> tuple[object, ...]:
    return rows(url, "SELECT balance, held FROM accounts WHERE account = ?", account)[0]


def rivals(job: str, url: str, *, processes: int, connections: int, count: int) -> list[int]:
    """Let processes that all begin at once do the same; how often each succeeded."""
    command = [sys.executable, "-m", "tests.support.rivals", job, url, str(connections), str(count)]
    fighters = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    backends = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{url.rpartition('/')[2]}'"
    wanted = processes * connections * 3
    deadline = time.monotonic() + 40
    while rows(url, backends) < [(wanted,)]:
        assert time.monotonic() < deadline, "the rivals do not come up"
        assert all(fighter.poll() is None for fighter in fighters)
    for fighter in fighters:
        assert fighter.stdin is not None
        fighter.stdin.write("go\n")
        fighter.stdin.flush()
    answers = [fighter.communicate()[0] for fighter in fighters]
    assert [fighter.returncode for fighter in fighters] == [0] * processes
    return [int(answer) for answer in answers]


class TestRivals:
    """Four processes with eight engines each: 32 connections ask for holds at once."""

    async def test_exactly_those_with_room_are_admitted(self, postgres_url: str) -> None:
        async with hot_database(postgres_url) as hot:
            await hot.post([purchase(1700)])
        granted = rivals("reserve", postgres_url, processes=4, connections=8, count=10)
        assert sum(granted) == 17
        assert held(postgres_url) == (1700, 1700)
        assert violations(postgres_url) == []

    async def test_one_id_is_one_hold_whoever_asks(self, postgres_url: str) -> None:
        async with hot_database(postgres_url) as hot:
            await hot.post([purchase(1700)])
        granted = rivals("reserve_the_same", postgres_url, processes=4, connections=8, count=5)
        assert granted == [40] * 4
        assert held(postgres_url) == (1700, 500)
        assert violations(postgres_url) == []

    async def test_every_charge_is_settled_once(self, postgres_url: str) -> None:
        async with hot_database(postgres_url) as hot:
            await hot.post([purchase(100_000), purchase(100_000, account="bob")])
            for account in ("alice", "bob"):
                ids = [new_id() for _ in range(150)]
                await asyncio.gather(*(hot.reserve(hold(i, account=account)) for i in ids))
                await asyncio.gather(*(hot.record(charge(i, 30, account=account)) for i in ids))
        settled = rivals("settle", postgres_url, processes=3, connections=4, count=30)
        assert sum(settled) == 300
        assert held(postgres_url) == held(postgres_url, "bob") == (95_500, 0)
        assert violations(postgres_url) == []

    async def test_first_entries_make_one_account(self, postgres_url: str) -> None:
        posted = rivals("post", postgres_url, processes=3, connections=4, count=50)
        assert sum(posted) == 50
        assert rows(postgres_url, "SELECT sum(balance), count(*) FROM accounts") == [(50, 3)]
        assert violations(postgres_url) == []


class TestClaims:
    async def test_a_live_claim_is_left_alone_and_a_dead_one_taken(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        one, two = new_id(), new_id()
        await hot.record(charge(one, 1))
        await hot.record(charge(two, 1))
        claim = f"UPDATE outbox SET claimed_by = 'other', claimed_at = {NOW} - ?::bigint WHERE event_id = ?"
        execute(postgres_url, claim, 0, one)
        execute(postgres_url, claim, LEASE_MS + 1, two)
        assert (await hot.settle_pending(10)).settled == 1
        assert rows(postgres_url, "SELECT event_id FROM outbox") == [(one,)]
        execute(postgres_url, claim, LEASE_MS + 1, one)
        assert (await hot.settle_pending(10)).settled == 1

    async def test_a_row_that_ended_its_workers_is_set_aside(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        await hot.post([purchase(1000)])
        deadly, hard, fine = (new_id() for _ in range(3))
        for event_id in (deadly, hard, fine):
            await hot.record(charge(event_id, 10))
        attempts = "UPDATE outbox SET attempts = ?::int WHERE event_id = ?"
        execute(postgres_url, attempts, ATTEMPTS_MAX, deadly)
        execute(postgres_url, attempts, ATTEMPTS_ALONE, hard)
        report = await hot.settle_pending(10)
        assert (report.settled, report.quarantined) == (2, 1)
        assert rows(postgres_url, "SELECT event_id FROM quarantine") == [(deadly,)]
        assert held(postgres_url) == (980, 0)

    async def test_what_others_settled_meanwhile_is_no_failure(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        one, two = sorted((new_id(), new_id()))
        for event_id in (one, two):
            await hot.record(charge(event_id, 1))
        # A trigger stands for the worker that takes a row whose lease ran out.
        execute(
            postgres_url,
            "CREATE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" DELETE FROM outbox WHERE event_id = '{one}' AND NEW.event_id = '{two}';"
            " RETURN NEW; END $$",
        )
        execute(
            postgres_url,
            "CREATE TRIGGER steal AFTER UPDATE ON outbox FOR EACH ROW EXECUTE FUNCTION steal()",
        )
        report = await hot.settle_pending(10)
        assert (report.settled, report.quarantined) == (1, 0)
        assert rows(postgres_url, "SELECT event_id FROM ledger_entries") == [(two,)]
        execute(postgres_url, "DROP TRIGGER steal ON outbox")
        execute(
            postgres_url,
            "INSERT INTO outbox (event_id, revision, account, payload, payload_hash, created_at)"
            " VALUES (?, 2, 'alice', ?, '', 0)",
            one,
            msgspec.json.encode(charge(one, 1).event),
        )
        assert (await hot.settle_pending(10)).settled == 1


class TestHoldsElsewhere:
    async def test_no_hold_is_touched_and_the_store_is_told(self, postgres_url: str) -> None:
        paid, guessed, free = (new_id() for _ in range(3))
        async with engine(postgres_url, holds_here=False) as hot:
            await hot.post([purchase(1000)])
            await hot.record(charge(paid, 30))
            await hot.record(estimate(guessed, 40))
            await hot.cancel(cancelled(free))
            report = await hot.settle_pending(10)
            assert report.applied == (
                # the estimate's ceiling is 100
                Applied(
                    account="alice",
                    balance=930,
                    seq=3,
                    final_ids=(paid,),
                    estimates=((guessed, 60),),
                ),
            )
            await hot.record(charge(guessed, 55))
            (told,) = (await hot.settle_pending(10)).applied
            assert (told.balance, told.seq, told.final_ids) == (915, 4, (guessed,))
        assert violations(postgres_url) == []


class TestResiduals:
    async def test_an_estimate_leaves_the_rest_held_until_the_final(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        await hot.post([purchase(1000)])
        one = new_id()
        await hot.reserve(hold(one))
        await hot.record(estimate(one, 40))
        await hot.settle_pending(10)
        assert held(postgres_url) == (960, 60)
        assert rows(postgres_url, "SELECT amount, state FROM holds") == [(60, "residual")]
        assert isinstance(await hot.extend(one, 90), Refused)
        await hot.heartbeat([HoldBeat(one, 100, 70)])
        assert held(postgres_url) == (960, 60)
        await hot.record(charge(one, 95))
        await hot.settle_pending(10)
        assert held(postgres_url) == (905, 0)


class TestStatements:
    """Each statement is a round trip, and a batch must not take more of them than a single event."""

    @pytest.fixture
    def counted(self, hot: PostgresHotDatabase) -> list[str]:
        seen: list[str] = []
        for lane in hot._lanes:
            connection = lane._connection
            assert isinstance(connection, asyncpg.Connection)
            connection.add_query_logger(lambda record: seen.append(record.query))
        return seen

    @pytest.mark.parametrize("events", [1, 60])
    async def test_of_records_holds_and_settlement(
        self, hot: PostgresHotDatabase, counted: list[str], events: int
    ) -> None:
        await hot.post([purchase(100_000)])
        ids = [new_id() for _ in range(events)]
        # The driver asks for what it does not know yet of the types, once for each connection.
        one = new_id()
        await hot.reserve(hold(one))
        await hot.heartbeat([HoldBeat(one, 100, 1)])
        await hot.record(charge(one, 1))
        await hot.settle_pending(1)
        counted.clear()
        await asyncio.gather(*(hot.reserve(hold(event_id)) for event_id in ids))
        assert len(counted) == 4  # BEGIN, lock, write, COMMIT
        counted.clear()
        await asyncio.gather(*(hot.record(charge(event_id, 1)) for event_id in ids))
        assert len(counted) == 1
        counted.clear()
        await asyncio.gather(*(hot.heartbeat([HoldBeat(i, 100, 1)]) for i in ids))
        assert len(counted) == 1
        counted.clear()
        assert (await hot.settle_pending(100)).settled == events
        assert len(counted) == 6  # claim; BEGIN, lock, look, write, COMMIT


def claimed(number: int, account: str) -> Claimed:
    return Claimed(Waiting(f"event-{number:03}", 2, False, account, b"", ""), 1)


class TestHalves:
    """A long batch is settled in two transactions at once, which share no account."""

    def test_no_account_is_in_both_and_the_last_row_is_in_the_second(self) -> None:
        names = ["a", "b", "c", "a", "d", "e", "b", "a", "f"]
        rows = [claimed(number, name) for number, name in enumerate(names)]
        first, second = halves(rows)
        assert sorted([*first, *second], key=lambda each: each.key) == rows
        assert not {each.row.account for each in first} & {each.row.account for each in second}
        assert second[-1] is rows[-1]
        assert abs(len(first) - len(second)) <= 3
        for part in (first, second):
            assert part == sorted(part, key=lambda each: each.key)

    def test_one_account_is_one_transaction(self) -> None:
        rows = [claimed(number, "hot") for number in range(5)]
        assert halves(rows) == ([], rows)

    async def test_both_are_settled_and_told_of(self, postgres_url: str) -> None:
        async with engine(postgres_url, holds_here=False) as hot:
            accounts = [f"account-{number}" for number in range(4)]
            await hot.post([purchase(100_000, account=account) for account in accounts])
            await record(hot, accounts, 2 * HALF_MIN)
            report = await hot.settle_pending(2 * HALF_MIN)
            assert connections(postgres_url) == 4  # holds, charges, ledger, and beside the ledger
        assert (report.settled, report.quarantined, report.remaining) == (2 * HALF_MIN, 0, False)
        told = {each.account: each for each in report.applied}
        assert sorted(told) == accounts
        assert {each.seq for each in told.values()} == {1 + HALF_MIN // 2}
        assert {len(each.final_ids) for each in told.values()} == {HALF_MIN // 2}
        assert violations(postgres_url) == []

    async def test_a_row_that_breaks_its_half_is_set_aside_alone(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        accounts = [f"account-{number}" for number in range(4)]
        ids = await record(hot, accounts, 2 * HALF_MIN)
        poison = ids[7]
        execute(
            postgres_url,
            "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'poison'; END $$",
        )
        execute(
            postgres_url,
            "CREATE TRIGGER poison BEFORE INSERT ON ledger_entries FOR EACH ROW"
            f" WHEN (NEW.event_id = '{poison}') EXECUTE FUNCTION poison()",
        )
        report = await hot.settle_pending(2 * HALF_MIN)
        assert (report.settled, report.quarantined) == (2 * HALF_MIN - 1, 1)
        assert rows(postgres_url, "SELECT event_id FROM quarantine") == [(poison,)]
        execute(postgres_url, "DROP TRIGGER poison ON ledger_entries")

    async def test_a_half_that_loses_its_server_is_settled_at_the_next_try(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        accounts = [f"account-{number}" for number in range(4)]
        await hot.post([purchase(100_000, account=account) for account in accounts])
        await record(hot, accounts, 2 * HALF_MIN)
        # The lock of another lets one half wait until its connection is gone.
        stranger = await asyncpg.connect(pg_dsn(postgres_url))
        try:
            blocked = stranger.transaction()
            await blocked.start()
            await stranger.execute("SELECT FROM accounts WHERE account = 'account-0' FOR UPDATE")
            settling = hot.settle_pending(2 * HALF_MIN)
            stop = (
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            deadline = time.monotonic() + 10
            while not await stranger.fetch(stop):
                assert time.monotonic() < deadline
            with pytest.raises(DatabaseUnavailableError):
                await settling
            await blocked.rollback()
        finally:
            await stranger.close()
        posted = "SELECT count(*) FROM ledger_entries WHERE source = 'charge'"
        # On a machine too slow to post the other in time, none.
        assert rows(postgres_url, posted) in ([(HALF_MIN,)], [(0,)])
        await eventually(lambda: hot.settle_pending(2 * HALF_MIN))
        while (await hot.settle_pending(2 * HALF_MIN)).remaining:
            pass
        assert rows(postgres_url, posted) == [(2 * HALF_MIN,)]
        assert rows(postgres_url, "SELECT max(attempts) FROM outbox") == [(None,)]


async def record(hot: PostgresHotDatabase, accounts: list[str], count: int) -> list[str]:
    """Let charges of 1 wait, in turn on each of the accounts; their ids."""
    ids = [new_id() for _ in range(count)]
    await asyncio.gather(
        *(
            hot.record(charge(event_id, 1, account=accounts[number % len(accounts)]))
            for number, event_id in enumerate(ids)
        )
    )
    return ids


def connections(url: str) -> object:
    """How many are open to this database, but for the one that asks."""
    return rows(
        url,
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )[0][0]


# What an array of PostgreSQL would read otherwise, were it not quoted.
TEXTS = ["", "null", "NULL", "{}", "a,b", 'say "so"', "back\\slash", "\\", '"', "two\nlines", "\t", "\x7f",
         "\u2028", "\U0001f600", '{"x": [1]}', "' OR 1", " blank ", "\\x41", "\\n"]  # fmt: skip


class TestTexts:
    """Whatever a text holds comes back as it was, alone or beside others."""

    @pytest.mark.parametrize("beside", [False, True])
    async def test_of_charges_and_entries(
        self, hot: PostgresHotDatabase, postgres_url: str, beside: bool
    ) -> None:
        given: dict[str, str] = {}
        finishes = []
        for text in TEXTS:
            finish = charge(new_id(), 1)
            event = finish.event
            told = msgspec.structs.replace(event.context, run_id=text, model_requested=text)
            event = msgspec.structs.replace(event, context=told)
            finishes.append(msgspec.structs.replace(finish, event=event))
            given[told.event_id] = text
        if beside:
            await asyncio.gather(*(hot.record(finish) for finish in finishes))
            await hot.settle_pending(100)
        else:
            for finish in finishes:
                await hot.record(finish)
                await hot.settle_pending(1)
        runs = rows(postgres_url, "SELECT event_id, run_id FROM usage")
        assert set(runs) == set(given.items())
        entries = rows(postgres_url, "SELECT event_id, description FROM ledger_entries")
        assert set(entries) == set(given.items())

    async def test_of_entries_that_are_no_calls(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        entries = [
            msgspec.structs.replace(purchase(1), description=f"<{text}>", source_ref_id=ref)
            for text in TEXTS
            for ref in (None, "null")
        ]
        await hot.post(entries)
        found = rows(
            postgres_url, "SELECT event_id, description, source_ref_id FROM ledger_entries"
        )
        assert {row[0]: row[1:] for row in found} == {
            entry.event_id: (entry.description, entry.source_ref_id) for entry in entries
        }

    async def test_a_text_with_nul_is_to_blame_alone(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        bad, good = charge(new_id(), 1), charge(new_id(), 1)
        told = msgspec.structs.replace(bad.event.context, run_id="a\0b")
        bad = msgspec.structs.replace(bad, event=msgspec.structs.replace(bad.event, context=told))
        answers = await asyncio.gather(hot.record(bad), hot.record(good), return_exceptions=True)
        assert isinstance(answers[0], asyncpg.DataError)
        assert answers[1] is None
        assert rows(postgres_url, "SELECT event_id FROM usage") == [(good.event.context.event_id,)]
        await hot.settle_pending(10)


class TestOutage:
    async def test_a_frozen_server_is_unavailable_in_time_and_comes_back(
        self, durable_postgres: PostgresServer, durable_url: str
    ) -> None:
        async with engine(durable_url) as hot:
            await hot.post([purchase(1000)])
            durable_postgres.pause()
            try:
                began = time.monotonic()
                answers = await asyncio.gather(
                    hot.record(charge(new_id(), 1)),
                    hot.reserve(hold(new_id())),
                    hot.settle_pending(1),
                    hot.ping(),
                    return_exceptions=True,
                )
                assert time.monotonic() - began < ANSWER_SECONDS + 4  # of a slow machine
            finally:
                durable_postgres.resume()
            assert [type(answer) for answer in answers] == [DatabaseUnavailableError] * 4
            await eventually(lambda: hot.record(charge(new_id(), 1)))
            await eventually(lambda: hot.reserve(hold(new_id())))
            while (await hot.settle_pending(10)).remaining:
                pass

    @pytest.mark.parametrize("how", ["immediate", "kill"])
    async def test_what_was_promised_outlasts_a_crash(
        self, durable_postgres: PostgresServer, durable_url: str, how: str
    ) -> None:
        promised: list[str] = []
        down = asyncio.Event()

        async def call(hot: PostgresHotDatabase) -> None:
            while not down.is_set():
                event_id = new_id()
                try:
                    assert await hot.reserve(hold(event_id)) == Granted(100)
                    await hot.record(charge(event_id, 1))
                except DatabaseUnavailableError:
                    return
                promised.append(event_id)

        async def settle(hot: PostgresHotDatabase) -> None:
            while not down.is_set():
                try:
                    await hot.settle_pending(50)
                except DatabaseUnavailableError:
                    return

        async with engine(durable_url) as hot:
            await hot.post([purchase(10**9)])
            async with asyncio.TaskGroup() as tasks:
                for _ in range(20):
                    tasks.create_task(call(hot))
                tasks.create_task(settle(hot))
                while len(promised) < 300:
                    await asyncio.sleep(0.01)
                if how == "kill":
                    durable_postgres.kill()
                else:
                    await asyncio.to_thread(durable_postgres.stop, "immediate")
                down.set()
            await asyncio.to_thread(durable_postgres.start)
            await eventually(lambda: hot.ping())
            await eventually(lambda: hot.settle_pending(1000))
            while (await hot.settle_pending(1000)).remaining:
                pass
        found = {row[0] for row in rows(durable_url, "SELECT usage_event_id FROM ledger_entries")}
        assert set(promised) <= found
        assert violations(durable_url) == []

    async def test_nobody_listens(self) -> None:
        hot = PostgresHotDatabase("postgresql+asyncpg://x@127.0.0.1:1/x", clock=lambda: T0)
        with pytest.raises(DatabaseUnavailableError):
            await hot.start()


async def eventually(ask: object, seconds: float = 15) -> None:
    """Ask until the database answers."""
    assert callable(ask)
    deadline = time.monotonic() + seconds
    while True:
        try:
            await ask()
        except DatabaseUnavailableError:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        else:
            return


class TestMigration:
    def test_up_down_and_up_again(self, postgres: PostgresServer) -> None:
        url = postgres.empty_database()
        assert migrate.current(url) is None
        migrate.upgrade(url)
        assert migrate.current(url) == migrate.head()
        migrate.check(url)
        migrate.downgrade(url, "base")
        left = "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'public'::regnamespace"
        assert rows(url, left) == [("alembic_version",)]
        assert rows(url, "SELECT proname FROM pg_proc WHERE proname = 'refuse_change'") == []
        migrate.upgrade(url)
        migrate.check(url)
        postgres.drop_database(url)

    def test_two_starters_wait_for_one_another(self, postgres: PostgresServer) -> None:
        url = postgres.empty_database()
        program = "import sys; from billing.db import migrate; migrate.upgrade(sys.argv[1])"
        starters = [subprocess.Popen([sys.executable, "-c", program, url]) for _ in range(4)]
        assert [starter.wait(30) for starter in starters] == [0] * 4
        assert migrate.current(url) == migrate.head()
        postgres.drop_database(url)

    async def test_append_only_on_every_partition(
        self, hot: PostgresHotDatabase, postgres_url: str
    ) -> None:
        await hot.record(charge(new_id(), 30))
        await hot.settle_pending(10)
        parts = rows(
            postgres_url,
            "SELECT relid::regclass::text FROM pg_partition_tree('usage') WHERE isleaf ORDER BY 1",
        )
        assert len(parts) == 5  # this month, three ahead, and the default
        for (table,) in [*parts, ("usage",), ("ledger_entries",)]:
            with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="append-only"):
                execute(postgres_url, f"TRUNCATE {table}")
        for table in ("usage", "usage_default", "ledger_entries"):
            for statement in (f"UPDATE {table} SET amount = 0", f"DELETE FROM {table}"):
                with pytest.raises(asyncpg.IntegrityConstraintViolationError, match="append-only"):
                    execute(postgres_url, statement)


def test_the_driver_is_named_in_the_address_alone() -> None:
    assert pg_dsn("postgresql+asyncpg://u@h/d") == "postgresql://u@h/d"
