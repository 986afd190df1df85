"""Runs `llm-gateway serve` or `worker` with a quicker registry: a death takes seconds less.

Usage: python run_paced.py BEAT ADMIT DEAD (seconds) serve|worker [PROCESSES]
"""

import os
import sys
from pathlib import Path

from billing.settlement.registry import Pace
from llm_gateway.config import Overrides, load
from llm_gateway.serving import serve
from llm_gateway.worker import work

if __name__ == "__main__":
    beat, admit, dead, command, *rest = sys.argv[1:]
    pace = Pace(beat_seconds=float(beat), admit_seconds=float(admit), dead_seconds=float(dead))
    overrides = Overrides(processes=int(rest[0]) if rest else None)
    config = load(Path("gateway.toml"), os.environ, overrides)
    sys.exit(serve(config, pace=pace) if command == "serve" else work(config, pace=pace))
