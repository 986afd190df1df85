"""Compare the mutants that survive with those that may: `python -m tests.mutation`, after `mutmut run`.

tests/mutation_survivors.toml names each survivor by its function and its changed line, with a
reason. One that is not listed fails; one that is listed and caught by now is to be taken off.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import NamedTuple

LISTED = Path(__file__).with_name("mutation_survivors.toml")
LIVES = {"survived", "no tests", "timeout", "suspicious"}


class Mutant(NamedTuple):
    """A change to a function that no test noticed."""

    function: str  # "billing.ledger.Batch.post"
    was: str
    now: str


def function_of(name: str) -> str:
    """`billing.ledger.xǁBatchǁpost__mutmut_3` is of billing.ledger.Batch.post."""
    return re.sub(r"\.x[_ǁ]", ".", name.rsplit("__mutmut_", 1)[0]).replace("ǁ", ".")


def changed_lines(diff: str) -> tuple[str, str]:
    """What a diff takes away and what it puts there, without indentation."""
    lines = [line for line in diff.splitlines() if not line.startswith(("---", "+++"))]
    was = "\n".join(line[1:].strip() for line in lines if line.startswith("-"))
    now = "\n".join(line[1:].strip() for line in lines if line.startswith("+"))
    return was, now


def survivors() -> set[Mutant]:
    """What `mutmut results` calls alive."""
    results = subprocess.run(["mutmut", "results"], check=True, capture_output=True, text=True)
    found: set[Mutant] = set()
    for line in results.stdout.splitlines():
        name, _, status = line.strip().partition(": ")
        if status not in LIVES:
            continue
        shown = subprocess.run(["mutmut", "show", name], check=True, capture_output=True, text=True)
        found.add(Mutant(function_of(name), *changed_lines(shown.stdout)))
    return found


def listed() -> dict[Mutant, str]:
    """The survivors that may be, and why."""
    entries = tomllib.loads(LISTED.read_text(encoding="utf-8")).get("survivor", [])
    return {Mutant(e["function"], e["was"], e["now"]): e["reason"] for e in entries}


def as_toml(mutant: Mutant, reason: str) -> str:
    """An entry of the list; JSON strings are TOML strings."""
    fields = {**mutant._asdict(), "reason": reason}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["[[survivor]]", *lines, ""])


def main() -> int:
    may, alive = listed(), survivors()
    for mutant in sorted(may.keys() - alive):
        print(f"caught by now, take it off the list:\n{as_toml(mutant, may[mutant])}")
    unlisted = sorted(alive - may.keys())
    for mutant in unlisted:
        print(f"nothing notices this change:\n{as_toml(mutant, '')}")
    print(f"{len(alive)} survive, {len(unlisted)} of them unlisted; {len(may)} are listed")
    return int(bool(unlisted) or bool(may.keys() - alive))


if __name__ == "__main__":
    sys.exit(main())
