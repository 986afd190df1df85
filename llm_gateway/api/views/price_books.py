"""Versions of the price book: uploaded, checked, compared, put in effect, explained."""

from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from llm_gateway.api.views.prices import CandidateView, PriceRuleView, price_rule_view
from llm_gateway.api.views.shared import Listing, Time, moment, moment_or_none
from pricing_rules.diff import Change, Diff
from pricing_rules.reader import Problem

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.books import Activated, BookInfo
    from billing.timeline import Activation


class ProblemView(msgspec.Struct, frozen=True, kw_only=True):
    """Something the linter has to say about a price book."""

    level: str
    line: int  # counted from 1, like the column; 0 if it has no place
    column: int
    rule: str
    field: str
    message: str
    expected: str  # "" where the message says it all; so is the next
    example: str


class LintView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a text would be accepted as a price book, and everything found in it."""

    acceptable: bool
    problems: list[ProblemView]


class UploadView(msgspec.Struct, frozen=True, kw_only=True):
    """The version of an uploaded book, which is in effect only once activated."""

    version: int
    repeated: bool
    warnings: list[ProblemView]


class BookView(msgspec.Struct, frozen=True, kw_only=True):
    """A version of the price book."""

    version: int
    name: str
    sha256: str
    rules: int
    uploaded_by: str
    uploaded_at: Time
    effective_from: Time | None  # since when it holds, or held last
    scheduled_from: Time | None  # from when on it is to hold
    current: bool


class BookDetailView(BookView, frozen=True, kw_only=True):
    """A version, and the effective_from that it says of itself: it holds no sooner."""

    planned_from: Time | None


class ScheduledView(msgspec.Struct, frozen=True, kw_only=True):
    """A version that is to take effect."""

    version: int
    effective_from: Time
    activated_by: str


class BookList(Listing, frozen=True, kw_only=True):
    """A page of versions, newest first; which one is in effect, and which are to be."""

    current: int | None
    scheduled: list[ScheduledView]
    items: list[BookView]


VersionNumber = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class RollbackRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which version is to be replaced, and which is to follow, as far as you know.

    If something else holds by then, or is to follow, nothing is done and the truth is told.
    """

    replaces: VersionNumber | None = None
    followed_by: VersionNumber | None = None


class ActivationRequest(RollbackRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when on a version holds; left out: as soon as every process can know of it."""

    at: Annotated[Time, Meta(tz=True)] | None = None


class ActivationView(msgspec.Struct, frozen=True, kw_only=True):
    """Which version holds from when on; `repeated`: it was to hold then already."""

    version: int
    effective_from: Time
    replaced: int | None
    followed_by: int | None
    repeated: bool


class ChangeView(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that changes; `percent`, as "+25", is of the price in credits, "" where it is none."""

    field: str
    before: str
    after: str
    percent: str


class ChangedRuleView(msgspec.Struct, frozen=True, kw_only=True):
    """A rule, by its id, that is not what it was."""

    rule_id: str
    changes: list[ChangeView]


class DiffView(msgspec.Struct, frozen=True, kw_only=True):
    """What a version changes against another; a version is null for a file that is none."""

    version: int | None
    against: int | None
    book: list[ChangeView]
    added: list[PriceRuleView]
    gone: list[PriceRuleView]
    changed: list[ChangedRuleView]
    unchanged: int


class ExplainView(msgspec.Struct, frozen=True, kw_only=True):
    """Which rule prices a call, and why every other candidate does not."""

    book: int
    rule: PriceRuleView | None
    rule_toml: str  # the rule with all its prices, as in a book; "" if there is none
    considered: list[CandidateView]


def problem_view(problem: Problem) -> ProblemView:
    """What the linter found."""
    return ProblemView(
        level=problem.level,
        line=problem.line,
        column=problem.column,
        rule=problem.rule,
        field=problem.field,
        message=problem.message,
        expected=problem.expected,
        example=problem.example,
    )


def scheduled_view(activation: "Activation") -> ScheduledView:
    """A version that is to take effect."""
    return ScheduledView(
        version=activation.version,
        effective_from=moment(activation.effective_from),
        activated_by=activation.activated_by,
    )


def activation_view(done: "Activated") -> ActivationView:
    """What came of an activation or a rollback."""
    return ActivationView(
        version=done.version,
        effective_from=moment(done.effective_from),
        replaced=done.replaced,
        followed_by=done.followed_by,
        repeated=done.repeated,
    )


def diff_view(found: Diff, version: int | None, against: int | None) -> DiffView:
    """What a book changes."""
    return DiffView(
        version=version,
        against=against,
        book=[_change_view(change) for change in found.book],
        added=[price_rule_view(rule) for rule in found.added],
        gone=[price_rule_view(rule) for rule in found.gone],
        changed=[
            ChangedRuleView(
                rule_id=rule.after.id, changes=[_change_view(change) for change in rule.changes]
            )
            for rule in found.changed
        ],
        unchanged=found.unchanged,
    )


def _change_view(change: Change) -> ChangeView:
    return ChangeView(
        field=change.field, before=change.before, after=change.after, percent=change.percent
    )


def book_view(info: "BookInfo", current: int | None) -> BookView:
    """A version, and whether it is the one in effect."""
    return BookView(
        version=info.version,
        name=info.name,
        sha256=info.sha256,
        rules=info.rules,
        uploaded_by=info.uploaded_by,
        uploaded_at=moment(info.uploaded_at),
        effective_from=moment_or_none(info.effective_from),
        scheduled_from=moment_or_none(info.scheduled_from),
        current=info.version == current,
    )
