"""What checks of the invariants find, and what a repair did."""

from typing import TYPE_CHECKING

import msgspec

from llm_gateway.api.views.shared import Time, moment

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.settlement.reconcile import Repaired, Report


class ViolationView(msgspec.Struct, frozen=True, kw_only=True):
    """Where an invariant does not hold."""

    id: str
    what: str


class FindingView(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one check; `examples` are the first ten of `count`."""

    check: str
    sentence: str
    ok: bool
    count: int
    examples: list[ViolationView]
    skipped: bool
    error: str


class ReportView(msgspec.Struct, frozen=True, kw_only=True):
    """What a run of all checks found."""

    ok: bool
    full: bool
    at: Time
    findings: list[FindingView]


class RepairedView(msgspec.Struct, frozen=True, kw_only=True):
    """What a repair wrote anew."""

    held_accounts: int
    rollup_groups: int
    guard_rebuilt: bool


class RepairView(msgspec.Struct, frozen=True, kw_only=True):
    """What was repaired, and what the checks find after it."""

    repaired: RepairedView
    report: ReportView


def report_view(report: "Report") -> ReportView:
    """The findings of a run."""
    return ReportView(
        ok=report.ok,
        full=report.full,
        at=moment(report.at),
        findings=[
            FindingView(
                check=finding.check,
                sentence=finding.sentence,
                ok=finding.ok,
                count=finding.count,
                examples=[
                    ViolationView(id=example.id, what=example.what) for example in finding.examples
                ],
                skipped=finding.skipped,
                error=finding.error,
            )
            for finding in report.findings
        ],
    )


def repaired_view(repaired: "Repaired") -> RepairedView:
    """What a repair did."""
    return RepairedView(
        held_accounts=repaired.held_accounts,
        rollup_groups=repaired.rollup_groups,
        guard_rebuilt=repaired.guard_rebuilt,
    )
