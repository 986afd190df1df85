"""Ends a test process whose test its own timeout cannot end, and prints where each thread stands.

The timeout is a signal, and a signal is heard in Python code alone: a test that waits for ever within
uvloop, or in native code, goes on. Python's watchdog is a thread that needs no lock of the
interpreter's, so it always acts; the runner then counts the test as failed, by its name, and starts
another process for the rest.
"""

import faulthandler
import os
import sys
from collections.abc import Generator
from typing import Final

import pytest

PATIENCE_SECONDS: Final = 30.0  # beyond the timeout, which tells more when it is heard

_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(sys.__stderr__.fileno() if sys.__stderr__ else 2)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    _watch(item)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    _watch(item)  # anew: pytest calls the watchdog off for whoever looks at a failure in a debugger
    yield


def _watch(item: pytest.Item) -> None:
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getini("timeout"))
    faulthandler.dump_traceback_later(
        seconds + PATIENCE_SECONDS, exit=True, file=item.config.stash[_stderr]
    )
