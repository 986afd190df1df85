"""Settings for the whole test run."""

import os

import pytest
from hypothesis import HealthCheck, Phase, settings

from tests.support.redis_server import own_redis, redis, shared_redis
from tests.support.services import durable_postgres, postgres, postgres_url

pytest_plugins = ["tests.support.watchdog"]

settings.register_profile("ci", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("dev", deadline=None, print_blob=True)
# A mutant is to be caught, not explained: no shrinking. mutmut runs the tests more than once in a
# process, which Hypothesis takes for other executors.
settings.register_profile(
    "mutation",
    derandomize=True,
    deadline=None,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.differing_executors],
)
if "MUTANT_UNDER_TEST" in os.environ:
    settings.load_profile("mutation")
else:
    settings.load_profile("ci" if os.environ.get("CI") else "dev")

# What takes long goes first, or the last file would keep one worker busy while the other has none.
_LONGEST_FIRST = (
    "tests/faults/",
    "tests/e2e/",
    "tests/llm_gateway/api/test_schema.py",
    "tests/model/",
    "tests/billing/",
)


# Counting lines more than doubles what a test of the database costs. What runs on both engines is
# counted on SQLite alone, but where an engine's own code is at stake; searches repeat lines that
# other tests count.
_COUNTED_ON_BOTH = ("tests/billing/db/", "tests/billing/holds/", "tests/billing/limits/")
_SEARCHES = (
    "tests/billing/db/test_interleavings.py",
    "tests/billing/shop/test_folded_days.py",
    "tests/billing/shop/test_orders_machine.py",
    "tests/billing/shop/test_consumption.py::test_any_order",
    "tests/llm_gateway/api/test_schema.py",
    "tests/pricing_rules/test_hostile.py",
    "tests/pricing_rules/test_properties.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_rank)  # stable: the order within a file stays
    for item in items:
        if _is_uncounted(item.nodeid):
            item.add_marker("no_cover")


def _is_uncounted(nodeid: str) -> bool:
    if nodeid.startswith(_SEARCHES):
        return True
    again = nodeid.startswith("tests/billing/") and "[postgres" in nodeid
    return again and not nodeid.startswith(_COUNTED_ON_BOTH)


def _rank(item: pytest.Item) -> int:
    ranks = (n for n, start in enumerate(_LONGEST_FIRST) if item.nodeid.startswith(start))
    return next(ranks, len(_LONGEST_FIRST))


__all__ = [  # fixtures
    "durable_postgres",
    "own_redis",
    "postgres",
    "postgres_url",
    "redis",
    "shared_redis",
]
