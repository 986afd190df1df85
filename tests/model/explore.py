"""Run the model over many seeds: `python -m tests.model.explore --seeds 3000`, and with each protection off."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.model.protections import ALL, Protection
from tests.model.world import LOSSES, Fault, ViolationError, World

if TYPE_CHECKING:
    from collections.abc import Iterable

STEPS = 300
EVERY_FAULT = frozenset(Fault)


@dataclass(slots=True)
class Findings:
    """What a number of seeds came to."""

    seeds: int = 0
    admitted: int = 0
    unrecorded: int = 0  # crashed calls of which nothing was left, by a double fault
    violations: list[tuple[int, str]] = field(default_factory=list)

    def kinds(self) -> dict[str, int]:
        """The first words of the violations, and how many there are of each."""
        return dict(Counter(text.split()[0] for _, text in self.violations))


def explore(
    seeds: Iterable[int],
    *,
    protections: frozenset[Protection] = ALL,
    faults: frozenset[Fault] = EVERY_FAULT,
    steps: int = STEPS,
    stop_at_first: bool = False,
) -> Findings:
    """Run each seed; what violates is a finding, not an error."""
    found = Findings()
    for seed in seeds:
        world = World(seed, protections=protections, faults=faults)
        try:
            world.run(steps)
        except ViolationError as violated:
            found.violations.append((seed, str(violated)))
        found.seeds += 1
        found.admitted += world.admitted
        found.unrecorded += world.unrecorded
        if found.violations and stop_at_first:
            break
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--without", type=str, default="", help="'all', or a protection's name")
    options = parser.parse_args()
    seeds = range(options.first, options.first + options.seeds)
    broken = False
    if not options.without:
        for name, faults in (("every fault", EVERY_FAULT), ("no loss", EVERY_FAULT - LOSSES)):
            began = time.perf_counter()
            found = explore(seeds, faults=faults, steps=options.steps)
            broken = broken or bool(found.violations)
            print(
                f"{name}: {len(found.violations)} of {found.seeds} seeds violate; "
                f"{found.admitted} admitted; {found.unrecorded} crashed calls left no record; "
                f"{time.perf_counter() - began:.0f} s",
                *found.violations[:5],
                sep="\n  ",
                flush=True,
            )
        return int(broken)
    wanted = ALL if options.without == "all" else {Protection[options.without]}
    for protection in Protection:
        if protection not in wanted:
            continue
        found = explore(seeds, protections=ALL - {protection}, steps=options.steps)
        first = found.violations[0][0] - options.first + 1 if found.violations else "-"
        print(
            f"{protection.name:28} {len(found.violations):5} of {found.seeds}, "
            f"first after {first}: {found.kinds()}",
            flush=True,
        )
        broken = broken or not found.violations
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
