"""Admission: the amounts that are asked for, and the output limit that a grant pays for."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing.context import decode_context
from billing.db.decide import Credit
from billing.db.engine import Engine
from billing.guard import Admitted, Bounds, CreditBalanceGuard, Plan, admit, plan
from billing.holds import GuardUnavailableError, Refused
from billing.holds.database import DatabaseHoldStore
from pricing_rules.price import Ceiling
from tests.support.migrated import migrated
from tests.support.money import context, hold, hot_database, new_id, purchase, rows

# 2 micro-credits per input token, 8 per output token, 5 per call.
RATES = Ceiling(input_rate=2, output_rate=8, fee=5, denominator=1)
FREE_OUTPUT = Ceiling(input_rate=2, output_rate=0, fee=0, denominator=1)
FREE = Ceiling(input_rate=0, output_rate=0, fee=0, denominator=1)


def bounds(limit: int | None = 100, *, tokens: int = 10, n: int = 1, most: int = 1000) -> Bounds:
    return Bounds(input_tokens=tokens, choices=n, client_limit=limit, model_max_output=most)


class TestPlan:
    @pytest.mark.parametrize(
        ("asked", "wanted", "minimum"),
        [
            # 10 x 2 + 5 = 25 for input and fee
            (bounds(100), 25 + 100 * 8, 25 + 64 * 8),
            (bounds(10), 25 + 10 * 8, 25 + 10 * 8),
            (bounds(None), 25 + 1000 * 8, 25 + 64 * 8),
            (bounds(None, most=32), 25 + 32 * 8, 25 + 32 * 8),
            (bounds(100, n=3), 25 + 300 * 8, 25 + 192 * 8),
            (bounds(5000, most=1000), 25 + 5000 * 8, 25 + 64 * 8),
        ],
    )
    def test_amounts(self, asked: Bounds, wanted: int, minimum: int) -> None:
        assert plan(RATES, asked, min_output_tokens=64) == Plan(wanted, minimum)

    def test_a_free_rule_asks_for_nothing(self) -> None:
        assert plan(FREE, bounds(), min_output_tokens=64) == Plan(0, 0)


class TestAdmit:
    def test_whole_grant_sends_the_clients_limit_and_no_other(self) -> None:
        assert admit(RATES, bounds(100), 825, 825) == Admitted(held=825, limit=100, clamped=False)
        assert admit(RATES, bounds(None), 8025, 8025).limit is None

    @pytest.mark.parametrize(
        ("asked", "wanted", "granted", "limit"),
        [
            (bounds(100), 825, 824, 99),  # (824 - 25) / 8 = 99.9
            (bounds(100), 825, 537, 64),
            (bounds(None), 8025, 825, 100),
            (bounds(100, n=3), 2425, 2424, 99),  # 2399 / 8 = 299.9, three ways
        ],
    )
    def test_less_sends_what_it_pays_for(
        self, asked: Bounds, wanted: int, granted: int, limit: int
    ) -> None:
        assert admit(RATES, asked, wanted, granted) == Admitted(
            held=granted, limit=limit, clamped=True
        )

    def test_free_output_is_not_clamped(self) -> None:
        assert admit(FREE_OUTPUT, bounds(100), 20, 20).limit == 100

    @given(
        rates=st.builds(
            Ceiling,
            input_rate=st.integers(0, 50),
            output_rate=st.integers(0, 50),
            fee=st.integers(0, 50),
            denominator=st.integers(1, 30),
        ),
        asked=st.builds(
            Bounds,
            input_tokens=st.integers(0, 500),
            choices=st.integers(1, 5),
            client_limit=st.none() | st.integers(1, 500),
            model_max_output=st.integers(1, 500),
        ),
        part=st.integers(0, 1000),
    )
    def test_what_is_admitted_is_paid_for(self, rates: Ceiling, asked: Bounds, part: int) -> None:
        amounts = plan(rates, asked, min_output_tokens=64)
        granted = amounts.minimum + (amounts.wanted - amounts.minimum) * part // 1000
        admitted = admit(rates, asked, amounts.wanted, granted)
        per_choice = asked.client_limit or asked.model_max_output
        limit = per_choice if admitted.limit is None else admitted.limit
        assert rates.amount(asked.input_tokens, asked.choices * limit) <= admitted.held
        assert min(per_choice, 64) <= limit <= per_choice
        assert admitted.clamped == (limit < per_choice)


class TestGuard:
    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        return migrated(tmp_path)

    @pytest.fixture
    async def hot(self, path: Path) -> AsyncIterator[Engine]:
        async with hot_database(path) as started:
            yield started

    @pytest.fixture
    def guard(self, hot: Engine) -> CreditBalanceGuard:
        return CreditBalanceGuard(DatabaseHoldStore(hot), process="p1", min_output_tokens=64)

    async def test_holds_under_the_calls_own_id(
        self, hot: Engine, guard: CreditBalanceGuard, path: Path
    ) -> None:
        await hot.post([purchase(10_000)])
        one = new_id()
        assert await guard.hold(context(one), RATES, bounds(100)) == Admitted(
            held=825, limit=100, clamped=False
        )
        assert rows(path, "SELECT hold_id, account, amount, process FROM holds") == [
            (one, "alice", 825, "p1")
        ]

    async def test_thin_credit_clamps(self, hot: Engine, guard: CreditBalanceGuard) -> None:
        await hot.post([purchase(600)])
        admitted = await guard.hold(context(new_id()), RATES, bounds(100))
        assert admitted == Admitted(held=600, limit=71, clamped=True)  # 575 / 8 = 71.9

    async def test_too_little_is_refused_with_what_is_needed(
        self, hot: Engine, guard: CreditBalanceGuard
    ) -> None:
        await hot.post([purchase(536)])
        refused = await guard.hold(context(new_id()), RATES, bounds(100))
        assert refused == Refused(reason="insufficient", balance=536, held=0, needed=537)

    @pytest.mark.parametrize("balance", [0, 536, 537, 600, 824, 825, 10_000])
    @pytest.mark.parametrize("held", [0, 1, 300])
    async def test_what_is_foreseen_is_what_then_happens(
        self, hot: Engine, guard: CreditBalanceGuard, balance: int, held: int
    ) -> None:
        if balance:
            await hot.post([purchase(balance)])
        if held := min(held, balance):
            await hot.reserve(hold(new_id(), minimum=held, wanted=held))
        foreseen = guard.foresee(Credit(balance, held, 0), RATES, bounds(100))
        assert foreseen == await guard.hold(context(new_id()), RATES, bounds(100))

    def test_a_suspended_account_is_foreseen_as_refused(self, guard: CreditBalanceGuard) -> None:
        foreseen = guard.foresee(Credit(10_000, 5, 1), RATES, bounds(100))
        assert foreseen == Refused(reason="suspended", balance=10_000, held=5, needed=537)

    async def test_a_dearer_fallback_raises_the_hold_or_is_refused(
        self, hot: Engine, guard: CreditBalanceGuard
    ) -> None:
        await hot.post([purchase(2000)])
        call = context(new_id())
        admitted = await guard.hold(call, RATES, bounds(100))
        assert isinstance(admitted, Admitted)
        dearer = Ceiling(input_rate=2, output_rate=16, fee=5, denominator=1)
        raised = await guard.raise_hold(call, dearer, bounds(100), admitted)
        assert raised == Admitted(held=1625, limit=100, clamped=False)  # 25 + 100 x 16
        dearest = Ceiling(input_rate=2, output_rate=160, fee=5, denominator=1)
        assert isinstance(await guard.raise_hold(call, dearest, bounds(100), raised), Refused)
        assert await guard.raise_hold(call, FREE, bounds(100), raised) == raised

    async def test_a_closed_store_is_unavailable(
        self, hot: Engine, guard: CreditBalanceGuard
    ) -> None:
        await hot.close()
        with pytest.raises(GuardUnavailableError):
            await guard.hold(context(new_id()), RATES, bounds(100))


class TestExtraOutput:
    """Tokens that are billed as output beside the limit: 10 here, 80 micro-credits."""

    ASKED = Bounds(
        input_tokens=10, choices=1, client_limit=100, model_max_output=1000, extra_output=10
    )

    def test_it_is_part_of_the_plan(self) -> None:
        assert plan(RATES, self.ASKED, min_output_tokens=64) == Plan(25 + 880, 25 + 64 * 8 + 80)

    def test_it_is_paid_before_the_answer(self) -> None:
        # 825 - 25 = 800 pays for 100 tokens, of which 10 are spoken for.
        assert admit(RATES, self.ASKED, 905, 825) == Admitted(held=825, limit=90, clamped=True)


class TestRaising:
    @pytest.fixture
    async def store(self, tmp_path: Path) -> AsyncIterator[DatabaseHoldStore]:
        async with hot_database(migrated(tmp_path)) as hot:
            await hot.post([purchase(10_000)])
            yield DatabaseHoldStore(hot)

    @pytest.mark.parametrize(
        ("limit", "held"),
        [
            (None, 2 * 10 + 5 + 1000 * 8),  # no limit is sent: the model's own
            (50, 2 * 10 + 5 + 50 * 8),  # clamped before: the clamp goes on
        ],
    )
    async def test_it_raises_to_what_the_sent_limit_may_cost(
        self, store: DatabaseHoldStore, limit: int | None, held: int
    ) -> None:
        guard = CreditBalanceGuard(store, process="p1", min_output_tokens=1)
        call = context(new_id())
        first = await guard.hold(call, RATES, bounds(1))
        assert isinstance(first, Admitted)
        before = Admitted(held=first.held, limit=limit, clamped=limit is not None)
        raised = await guard.raise_hold(call, RATES, bounds(None), before)
        assert raised == Admitted(held=held, limit=limit, clamped=limit is not None)

    async def test_a_hold_that_is_just_enough_asks_nobody(self) -> None:
        nobody = CreditBalanceGuard(_Unreachable(), process="p1", min_output_tokens=64)
        enough = Admitted(held=825, limit=100, clamped=False)
        assert await nobody.raise_hold(context(new_id()), RATES, bounds(100), enough) == enough


class _Unreachable(DatabaseHoldStore):
    """A store that must not be asked."""

    def __init__(self) -> None:
        """It has no database."""


async def test_a_hold_keeps_its_calls_context(tmp_path: Path) -> None:
    path = migrated(tmp_path)
    async with hot_database(path) as hot:
        await hot.post([purchase(10_000)])
        guard = CreditBalanceGuard(DatabaseHoldStore(hot), process="p1", min_output_tokens=64)
        call = context(new_id())
        await guard.hold(call, RATES, bounds(100))
        ((kept,),) = rows(path, "SELECT context FROM holds")
        assert isinstance(kept, bytes)
        assert decode_context(kept) == call
