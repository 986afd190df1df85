"""Runs `llm-gateway serve`, and dies by SIGKILL when the path reaches a named point for the k-th time.

Usage: python serve_with_failpoints.py NAME K [arguments of llm-gateway ...]
"""

import os
import signal
import sys
from collections.abc import Callable

from billing import failpoints
from llm_gateway.cli import main


def killer(at: int) -> Callable[[], None]:
    reached = 0

    def hook() -> None:
        nonlocal reached
        reached += 1
        if reached == at:
            os.kill(os.getpid(), signal.SIGKILL)

    return hook


if __name__ == "__main__":
    name, at, *arguments = sys.argv[1:]
    failpoints.hooks[name] = killer(int(at))
    sys.argv = ["llm-gateway", *arguments]
    main()
