"""The protocol survives every fault with all of its protections, and is caught without any one of them."""

import pytest

from tests.model.explore import EVERY_FAULT, explore
from tests.model.protections import ALL, Protection
from tests.model.scenarios import SCENARIOS, tell
from tests.model.world import LOSSES

SEEDS = 300  # `python -m tests.model.explore --seeds 5000` tries as many as you have time for
SEEDS_UNTIL_CAUGHT = 800

# No random run finds these often enough: each needs a chain of events within a few steps, which
# scenarios.py tells one by one.
BY_SCENARIO = frozenset(SCENARIOS)


def test_all_protections_survive_every_fault() -> None:
    found = explore(range(SEEDS))
    assert found.violations == []
    assert found.admitted > 10 * SEEDS, "a model that admits nobody proves nothing"


def test_nothing_goes_unrecorded_while_the_guard_loses_nothing() -> None:
    found = explore(range(SEEDS), faults=EVERY_FAULT - LOSSES)
    assert found.violations == []
    assert found.unrecorded == 0


def test_without_faults_it_is_quiet() -> None:
    assert explore(range(50), faults=frozenset()).violations == []


def test_a_run_is_told_by_its_seed_alone() -> None:
    without_dedupe = ALL - {Protection.DEDUPE}
    first = explore(range(20), protections=without_dedupe)
    again = explore(range(20), protections=without_dedupe)
    assert first.violations
    assert first.violations == again.violations


@pytest.mark.parametrize("protection", sorted(ALL - BY_SCENARIO), ids=lambda p: p.name)
def test_its_absence_is_caught_by_chance(protection: Protection) -> None:
    found = explore(range(SEEDS_UNTIL_CAUGHT), protections=ALL - {protection}, stop_at_first=True)
    assert found.violations, f"nothing shows that {protection}"


@pytest.mark.parametrize("protection", sorted(BY_SCENARIO), ids=lambda p: p.name)
def test_its_absence_is_caught_by_its_scenario(protection: Protection) -> None:
    assert tell(protection, ALL) is None
    violated = tell(protection, ALL - {protection})
    assert violated is not None, f"nothing shows that {protection}"
    assert violated.startswith("OVERSPENT")
