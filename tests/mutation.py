"""Compare the mutants that survive with those that may: `python -m tests.mutation`, after `mutmut run`.

tests/mutation_survivors.toml names each survivor by its function and its changed line, with a
reason. One that is not listed fails, as does one that is listed and caught by now, and one that was
not run. Patterns given to `mutmut run` ("billing.ledger.*") are given here as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

LISTED = Path(__file__).with_name("mutation_survivors.toml")
NOTICED = {"killed", "caught by type check", "skipped"}
NOT_RUN = {"not checked", "check was interrupted by user"}


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


def statuses(patterns: list[str]) -> dict[str, str]:
    """What mutmut says of each mutant whose name matches a pattern."""
    results = _mutmut("results", "--all", "true")
    parts = (line.strip().partition(": ") for line in results.splitlines())
    return {name: status for name, _, status in parts if status and _matches(name, patterns)}


def described(name: str) -> Mutant:
    return Mutant(function_of(name), *changed_lines(_mutmut("show", name)))


def _mutmut(*args: str) -> str:
    return subprocess.run(["mutmut", *args], check=True, capture_output=True, text=True).stdout


def _matches(name: str, patterns: list[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def listed() -> dict[Mutant, str]:
    """The survivors that may be, and why."""
    entries = tomllib.loads(LISTED.read_text(encoding="utf-8")).get("survivor", [])
    return {Mutant(e["function"], e["was"], e["now"]): e["reason"] for e in entries}


def as_toml(mutant: Mutant, reason: str) -> str:
    """An entry of the list; JSON strings are TOML strings."""
    fields = {**mutant._asdict(), "reason": reason}
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["[[survivor]]", *lines, ""])


class Verdict(NamedTuple):
    """How a run compares with the list; it is good if all three are empty."""

    not_run: list[str]  # names of mutants
    unlisted: list[Mutant]
    caught: list[Mutant]  # listed, but noticed by now


def judge(
    found: dict[str, str],
    describe: Callable[[str], Mutant],
    may: Collection[Mutant],
    patterns: list[str],
) -> Verdict:
    """Compare statuses by name with the survivors that may be.

    A run that was broken off cannot tell which of those it did not come to are caught by now.
    """
    not_run = sorted(name for name, status in found.items() if status in NOT_RUN)
    alive = {describe(name) for name in found.keys() - not_run if found[name] not in NOTICED}
    chosen = [mutant for mutant in may if _matches(mutant.function, patterns)]
    caught = [] if not_run else sorted(set(chosen) - alive)
    return Verdict(not_run, sorted(alive - set(may)), caught)


def main(patterns: list[str]) -> int:
    patterns = patterns or ["*"]
    found, may = statuses(patterns), listed()
    verdict = judge(found, described, may, patterns)
    for name in verdict.not_run:
        print(f"not run: {name}")
    for mutant in verdict.caught:
        print(f"caught by now, take it off the list:\n{as_toml(mutant, may[mutant])}")
    for mutant in verdict.unlisted:
        print(f"nothing notices this change:\n{as_toml(mutant, '')}")
    noticed = sum(status in NOTICED for status in found.values())
    print(
        f"{len(found)} mutants: {noticed} noticed, {len(verdict.not_run)} not run, "
        f"{len(verdict.unlisted)} survive unlisted; {len(may)} are listed in all"
    )
    return int(not found or any(verdict))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
