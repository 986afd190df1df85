"""What calls would cost by another price book, and runs that charge them by it."""

from typing import TYPE_CHECKING, Annotated, Final, Literal

import msgspec
from msgspec import Meta

from billing.kinds import LeftOut
from llm_gateway.api.views.shared import Listing, ReasonText, Time, moment, moment_or_none

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.rerating.runs import Run
    from billing.rerating.simulate import Progress
    from billing.rerating.simulator import Question
    from billing.rerating.tally import Cause, Group, Groups, Simulation, Sums

# In the words of people.
EXPLAINED: Final[dict[str, str]] = {
    LeftOut.NO_RULE: "no rule of the book matches",
    LeftOut.ESTIMATE: "charged by estimate, usage unknown",
    LeftOut.NO_USAGE: "no usage was reported, its hold was charged",
    LeftOut.NOT_AS_PRICED: "not charged by its usage: an estimate cut to its hold",
    LeftOut.SERVICE_TIER: "its service tier is not recorded, or not in the book",
    LeftOut.UNKNOWN_BOOK: "the book or rule that it was priced by is gone",
    LeftOut.TOO_LARGE: "the price would be too large for an entry",
    LeftOut.NOT_SETTLED: "its charge is not in the ledger yet",
    LeftOut.REFUNDED: "all of its charge was given back",
    LeftOut.REFUSED: "the ledger did not take the entry",
}


class RerateSumsView(msgspec.Struct, frozen=True, kw_only=True):
    """Of some calls. `calls`, `before` and `after` are of those that have a price by the book.

    `left_out` is what the others cost, whatever the book says: they count as neither 0 nor changed.
    """

    calls: int
    before_micro_credits: int
    after_micro_credits: int
    difference_micro_credits: int
    left_out_calls: int
    left_out_micro_credits: int


class RerateGroupView(RerateSumsView, frozen=True, kw_only=True):
    """The calls of one account, scene, provider and model; null where that does not matter."""

    account: str | None
    scene: str | None
    provider: str | None
    model: str | None


class RerateGroupsView(msgspec.Struct, frozen=True, kw_only=True):
    """The dearest first; all that are not told in `rest`."""

    items: list[RerateGroupView]
    rest: RerateSumsView


class LeftOutView(msgspec.Struct, frozen=True, kw_only=True):
    """Calls that have no price by the book, and what they cost."""

    reason: LeftOut
    meaning: str
    calls: int
    micro_credits: int


class SimulationView(msgspec.Struct, frozen=True, kw_only=True):
    """What calls that began from `from` on, and before `to`, would cost by a book.

    `book`: null for one that is not stored. `no_rule`: calls that no rule of it matches. `movers`:
    where account, scene and model would change the most. `cut`: there were too many accounts and
    models to keep apart; the sums are right, but lists may miss one.
    """

    book: int | None
    from_: Time = msgspec.field(name="from")
    to: Time
    totals: RerateSumsView
    left_out: list[LeftOutView]
    no_rule: RerateGroupsView
    by_account: RerateGroupsView
    by_scene: RerateGroupsView
    by_model: RerateGroupsView
    movers: list[RerateGroupView]
    cut: bool


class ProgressView(msgspec.Struct, frozen=True, kw_only=True):
    """Calls looked at so far, and the part of the time in percent."""

    calls: int
    percent: int


class ProgressLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line while a simulation goes on."""

    progress: ProgressView


class ResultLine(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of a simulation."""

    result: SimulationView


Book = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Moment = Annotated[Time, Meta(tz=True)]


class PreviewRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Calls that began from `from` on, and before `to`, by a stored book."""

    book: Book
    from_: Moment = msgspec.field(name="from")
    to: Moment


class RerateRequest(PreviewRequest, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which calls are to be charged by which book, and why."""

    reason: ReasonText


class LeftOutCallsView(msgspec.Struct, frozen=True, kw_only=True):
    """How many calls keep what they are charged, and why."""

    reason: LeftOut
    meaning: str
    calls: int


class RunView(msgspec.Struct, frozen=True, kw_only=True):
    """A run of re-rating. While it is `posting`, the counts are those up to now.

    `taken` and `given_back`: the sums of its entries that charge more, and of those that charge less.
    """

    run_id: str
    book: int
    from_: Time = msgspec.field(name="from")
    to: Time
    reason: str
    actor: str
    state: Literal["posting", "done"]
    percent: int
    calls: int
    entries: int
    taken_micro_credits: int
    given_back_micro_credits: int
    left_out: list[LeftOutCallsView]
    created_at: Time
    finished_at: Time | None


class RunStartedView(msgspec.Struct, frozen=True, kw_only=True):
    """A run; `repeated`: it was asked for before."""

    repeated: bool
    run: RunView


class RunList(Listing, frozen=True, kw_only=True):
    """A page of runs, newest first."""

    items: list[RunView]


def simulation_view(question: "Question", found: "Simulation") -> SimulationView:
    """An answer with what was asked."""
    return SimulationView(
        book=question.version or None,
        from_=moment(question.window.from_at),
        to=moment(question.window.to_at),
        totals=_sums_view(found.sums),
        left_out=[_cause_view(cause) for cause in found.left_out],
        no_rule=_groups_view(found.no_rule),
        by_account=_groups_view(found.by_account),
        by_scene=_groups_view(found.by_scene),
        by_model=_groups_view(found.by_model),
        movers=[_group_view(group) for group in found.movers],
        cut=found.cut,
    )


def progress_view(progress: "Progress") -> ProgressView:
    """How far a simulation is."""
    return ProgressView(calls=progress.calls, percent=progress.percent)


def run_view(run: "Run") -> RunView:
    """A run as it stands."""
    return RunView(
        run_id=run.run_id,
        book=run.book,
        from_=moment(run.from_at),
        to=moment(run.to_at),
        reason=run.reason,
        actor=run.actor,
        state=run.state,
        percent=run.percent,
        calls=run.calls,
        entries=run.entries,
        taken_micro_credits=run.taken,
        given_back_micro_credits=run.given_back,
        left_out=[
            LeftOutCallsView(reason=reason, meaning=EXPLAINED[reason], calls=calls)
            for reason, calls in sorted(run.left_out.items())
        ],
        created_at=moment(run.created_at),
        finished_at=moment_or_none(run.finished_at),
    )


def _sums_view(sums: "Sums") -> RerateSumsView:
    return RerateSumsView(
        calls=sums.calls,
        before_micro_credits=sums.before,
        after_micro_credits=sums.after,
        difference_micro_credits=sums.difference,
        left_out_calls=sums.left_out_calls,
        left_out_micro_credits=sums.left_out,
    )


def _group_view(group: "Group") -> RerateGroupView:
    return RerateGroupView(
        account=group.account or None,
        scene=group.scene or None,
        provider=group.provider or None,
        model=group.model or None,
        **msgspec.structs.asdict(_sums_view(group.sums)),
    )


def _groups_view(groups: "Groups") -> RerateGroupsView:
    return RerateGroupsView(
        items=[_group_view(group) for group in groups.items], rest=_sums_view(groups.rest)
    )


def _cause_view(cause: "Cause") -> LeftOutView:
    return LeftOutView(
        reason=cause.reason,
        meaning=EXPLAINED[cause.reason],
        calls=cause.calls,
        micro_credits=cause.amount,
    )
