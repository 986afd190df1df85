"""Versions of the price book: uploaded, checked, put in effect, explained."""

from typing import Annotated

import msgspec
from msgspec import Meta

from billing.books import BookInfo
from llm_gateway.api.views.prices import CandidateView, PriceRuleView
from llm_gateway.api.views.shared import Listing, Time, moment, moment_or_none
from pricing_rules.book import Problem


class ProblemView(msgspec.Struct, frozen=True, kw_only=True):
    """Something the linter has to say about a price book."""

    level: str
    line: int
    rule: str
    field: str
    message: str


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
    effective_from: Time | None
    current: bool


class BookList(Listing, frozen=True, kw_only=True):
    """A page of versions, newest first."""

    items: list[BookView]


class ActivationRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From when on a version holds; left out: as soon as every process can know of it."""

    at: Annotated[Time, Meta(tz=True)] | None = None


class ActivationView(msgspec.Struct, frozen=True, kw_only=True):
    """Which version holds from when on."""

    version: int
    effective_from: Time


class ExplainView(msgspec.Struct, frozen=True, kw_only=True):
    """Which rule prices a call, and why every other candidate does not."""

    book: int
    rule: PriceRuleView | None
    considered: list[CandidateView]


def problem_view(problem: Problem) -> ProblemView:
    """What the linter found."""
    return ProblemView(
        level=problem.level,
        line=problem.line,
        rule=problem.rule,
        field=problem.field,
        message=problem.message,
    )


def book_view(info: BookInfo, current: int | None) -> BookView:
    """A version, and whether it is the one in effect."""
    return BookView(
        version=info.version,
        name=info.name,
        sha256=info.sha256,
        rules=info.rules,
        uploaded_by=info.uploaded_by,
        uploaded_at=moment(info.uploaded_at),
        effective_from=moment_or_none(info.effective_from),
        current=info.version == current,
    )
