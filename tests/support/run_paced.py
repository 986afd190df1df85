"""Runs `llm-gateway serve` or `worker` with a quicker registry: a death takes seconds less.

Usage: python run_paced.py BEAT ADMIT DEAD (seconds) serve|worker [PROCESSES]
SIGUSR1 sets its wall clock an hour forward, SIGUSR2 an hour back. SLOW_START_SECONDS in the environment:
how long it does nothing, once all is made and before it listens, as on a machine that swaps.
"""

import os
import signal
import sys
import time
from pathlib import Path

from billing.settlement.registry import Pace
from llm_gateway import clock, garbage, serving
from llm_gateway.config import Overrides, load
from llm_gateway.serving import serve
from llm_gateway.worker import work

HOUR_MS = 3_600_000


def let_the_clock_jump() -> None:
    """Must come before anything is built: all parts are handed the function itself."""
    true_ms = clock.now_ms
    ahead = 0

    def jump(number: int, _: object) -> None:
        nonlocal ahead
        ahead += HOUR_MS if number == signal.SIGUSR1 else -HOUR_MS

    clock.now_ms = lambda: true_ms() + ahead
    signal.signal(signal.SIGUSR1, jump)
    signal.signal(signal.SIGUSR2, jump)


def start_slowly(seconds: float) -> None:
    def pause() -> None:
        time.sleep(seconds)
        garbage.collect_rarely()

    serving.collect_rarely = pause  # type: ignore[attr-defined]  # the last thing it makes


if __name__ == "__main__":
    let_the_clock_jump()
    start_slowly(float(os.environ.get("SLOW_START_SECONDS", "0")))
    beat, admit, dead, command, *rest = sys.argv[1:]
    pace = Pace(beat_seconds=float(beat), admit_seconds=float(admit), dead_seconds=float(dead))
    overrides = Overrides(processes=int(rest[0]) if rest else None)
    config = load(Path("gateway.toml"), os.environ, overrides)
    sys.exit(serve(config, pace=pace) if command == "serve" else work(config, pace=pace))
