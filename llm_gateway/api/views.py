"""What the endpoints answer and take, field by field.

Amounts are integers in fields ending `_micro_credits`, prices are decimal text per 1M tokens in a
rule's currency, times are ISO 8601 in UTC.
"""

from datetime import UTC, datetime, timedelta
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from billing.accounts import AccountInfo, Transaction
from billing.audit import AuditRow
from billing.books import BookInfo
from billing.charges import ExplainedCharge, Pricing
from billing.keys import KeyInfo, KeyKind
from billing.lists import Page
from pricing_rules.book import Problem, Rule
from pricing_rules.match import Candidate
from pricing_rules.price import Line
from pricing_rules.usage import Usage

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)

Time = datetime
MicroCredits = Annotated[int, Meta(ge=-(2**53 - 1), le=2**53 - 1)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]+$")]
Text = Annotated[str, Meta(max_length=500)]


def moment(at_ms: int) -> Time:
    """Milliseconds since the epoch as a time in UTC, exactly."""
    return _EPOCH + at_ms * _MILLISECOND


def moment_or_none(at_ms: int | None) -> Time | None:
    """As `moment`; None stays None."""
    return None if at_ms is None else moment(at_ms)


def milliseconds(time: Time) -> int:
    """A time with a zone as milliseconds since the epoch, rounded down."""
    return (time - _EPOCH) // _MILLISECOND


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """The frame of a list. `next_after` is what to send as `after` for what follows."""

    page: int
    page_size: int
    total: int
    has_more: bool
    next_after: str | None = None


# -- OpenAI's models -------------------------------------------------------------------------


class ModelView(msgspec.Struct, frozen=True, kw_only=True):
    """A model in OpenAI's shape; `created` is not known and 0."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All models in OpenAI's shape."""

    object: Literal["list"] = "list"
    data: list[ModelView]


# -- the credit store ------------------------------------------------------------------------


class BalanceView(msgspec.Struct, frozen=True, kw_only=True):
    """What an account has; zeros if nothing was ever posted to it."""

    account: str
    balance_micro_credits: int
    held_micro_credits: int
    available_micro_credits: int
    total_recharged_micro_credits: int
    total_rewarded_micro_credits: int
    total_consumed_micro_credits: int
    total_refunded_micro_credits: int
    total_expired_micro_credits: int
    total_adjusted_micro_credits: int
    blocked: bool
    suspended: bool
    seq: int
    updated_at: Time | None
    source: Literal["db", "cache"]


class TransactionView(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the ledger."""

    transaction_id: str
    event_id: str
    source: str
    source_label: str
    direction: str
    amount_micro_credits: int
    balance_after_micro_credits: int
    status: str
    description: str
    metadata_json: str
    created_at: Time
    order_id: str | None
    source_ref_id: str | None


class TransactionList(Listing, frozen=True, kw_only=True):
    """A page of an account's transactions, newest first."""

    items: list[TransactionView]
    source: Literal["db", "cache"]


class PriceRuleView(msgspec.Struct, frozen=True, kw_only=True):
    """What calls cost; a price that the book leaves out is null (cached input is as input then)."""

    rule_id: str
    scene: str
    provider_name: str
    model_name: str
    currency: str
    credits_per_unit: str
    input_price: str | None
    cached_input_price: str | None
    output_price: str | None
    reasoning_price: str | None
    per_call_price: str | None
    free: bool
    status: str
    priority: int
    description: str


class PriceRuleList(Listing, frozen=True, kw_only=True):
    """The rules of the book in effect that can apply to the caller."""

    book: int
    items: list[PriceRuleView]


class UsageView(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens by class; the classes are disjoint."""

    input: int
    cached_input: int
    cache_write_5m: int
    cache_write_1h: int
    audio_input: int
    image_input: int
    output: int
    reasoning: int
    audio_output: int


class LineView(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the price: quantity x price, in micro-credits before rounding."""

    kind: str
    quantity: int
    price: str
    exact_micro_credits: str


class CandidateView(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that was considered, and why it applies or not."""

    rule_id: str
    won: bool
    why: str


class PricingView(msgspec.Struct, frozen=True, kw_only=True):
    """How the amount came about. Rounded up once, at the end."""

    rule: PriceRuleView | None
    considered: list[CandidateView]
    lines: list[LineView]
    exact_micro_credits: str
    rounding_micro_credits: str
    computed_micro_credits: int


class HoldView(msgspec.Struct, frozen=True, kw_only=True):
    """Credit still set aside for the call."""

    held_micro_credits: int
    progress_micro_credits: int
    state: str


class ChargeView(msgspec.Struct, frozen=True, kw_only=True):
    """A call explained; amount, usage and pricing are null while it runs."""

    event_id: str
    account: str
    key_id: str
    app: str
    scene: str
    provider: str
    model_requested: str
    model_sent: str
    run_id: str
    client_request_id: str
    book: int
    rule_id: str
    settlement: str
    amount_micro_credits: int | None
    ceiling_micro_credits: int | None
    quality: str | None
    usage_source: str | None
    revision: int | None
    reason: str | None
    usage: UsageView | None
    pricing: PricingView | None
    hold: HoldView | None
    entries: list[TransactionView]
    started_at: Time
    finished_at: Time | None
    source: Literal["db", "cache"]


# -- admin -----------------------------------------------------------------------------------


class AccountView(msgspec.Struct, frozen=True, kw_only=True):
    """An account as an administrator sees it."""

    account: str
    name: str
    note: str
    balance_micro_credits: int
    held_micro_credits: int
    available_micro_credits: int
    total_recharged_micro_credits: int
    total_rewarded_micro_credits: int
    total_consumed_micro_credits: int
    total_refunded_micro_credits: int
    total_expired_micro_credits: int
    total_adjusted_micro_credits: int
    blocked: bool
    suspended: bool
    suspended_reason: str
    seq: int
    created_at: Time | None
    updated_at: Time | None


class AccountList(Listing, frozen=True, kw_only=True):
    """A page of accounts, in the order of their ids."""

    items: list[AccountView]


class NewAccount(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An account to make; the id is the user's id with the calling services."""

    account: str
    name: Text = ""
    note: Text = ""


class Suspension(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Why an account is suspended."""

    reason: Annotated[str, Meta(min_length=1, max_length=500)]


class NewGrant(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Credit to give. Repeated under one `event_id` (or Idempotency-Key) it is given once."""

    account: str
    amount_micro_credits: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    event_id: Annotated[str, Meta(max_length=200)] = ""
    description: Text = ""
    source: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$")] = "manual"
    source_label: Annotated[str, Meta(max_length=100)] = ""


class GrantView(msgspec.Struct, frozen=True, kw_only=True):
    """The entry of a grant, and the account as it is now."""

    repeated: bool
    entry: TransactionView
    account: AccountView


class KeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A key without its token, of which `prefix` is all that is kept."""

    key_id: str
    kind: KeyKind
    prefix: str
    account: str
    app: str
    accounts: list[str]
    default_scene: str
    scenes: list[str]
    models: list[str]
    description: str
    revoked: bool
    created_at: Time
    expires_at: Time | None
    revoked_at: Time | None


class KeyList(Listing, frozen=True, kw_only=True):
    """A page of keys, newest first."""

    items: list[KeyView]


class KeyRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A key to make: a user key names its account, an app key its app."""

    kind: KeyKind
    account: str = ""
    app: Annotated[str, Meta(max_length=64)] = ""
    accounts: list[str] = []
    default_scene: Name
    scenes: list[Name] = []
    models: list[Annotated[str, Meta(min_length=1, max_length=200)]] = []
    description: Text = ""
    expires_at: Annotated[Time, Meta(tz=True)] | None = None


class NewKeyView(msgspec.Struct, frozen=True, kw_only=True):
    """A new key and its token, which is shown this once."""

    key: KeyView
    token: str


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


class OpenHoldView(msgspec.Struct, frozen=True, kw_only=True):
    """A hold of any account."""

    hold_id: str
    account: str
    held_micro_credits: int
    progress_micro_credits: int
    state: str
    process: str
    started_at: Time


class HoldList(Listing, frozen=True, kw_only=True):
    """A page of holds, newest first."""

    items: list[OpenHoldView]


class OutboxView(msgspec.Struct, frozen=True, kw_only=True):
    """A charge event that is not in the ledger yet."""

    event_id: str
    revision: int
    account: str
    cancelled: bool
    attempts: int
    claimed_by: str | None
    claimed_at: Time | None
    created_at: Time


class OutboxList(Listing, frozen=True, kw_only=True):
    """A page of the outbox, oldest first."""

    items: list[OutboxView]


class QuarantineView(msgspec.Struct, frozen=True, kw_only=True):
    """An event that could not be posted as it is; somebody has to decide."""

    id: int
    event_id: str
    revision: int
    account: str
    origin: str
    reason: str
    resolution: str
    created_at: Time
    resolved_at: Time | None


class QuarantineList(Listing, frozen=True, kw_only=True):
    """A page of the quarantine, newest first."""

    items: list[QuarantineView]


class AuditView(msgspec.Struct, frozen=True, kw_only=True):
    """An administrator's act."""

    audit_id: int
    actor: str
    action: str
    target: str
    detail: dict[str, str | int | bool | None]
    created_at: Time


class AuditList(Listing, frozen=True, kw_only=True):
    """A page of the audit trail, newest first."""

    items: list[AuditView]


# -- operations ------------------------------------------------------------------------------


class HealthView(msgspec.Struct, frozen=True, kw_only=True):
    """The process answers."""

    status: Literal["ok"] = "ok"


class DependencyView(msgspec.Struct, frozen=True, kw_only=True):
    """One thing the gateway depends on."""

    name: str
    status: Literal["up", "down"]
    detail: str


class ReadyView(msgspec.Struct, frozen=True, kw_only=True):
    """Whether calls can be taken, dependency by dependency."""

    status: Literal["ready", "unavailable"]
    dependencies: list[DependencyView]


# -- from values to views --------------------------------------------------------------------


def balance_view(info: AccountInfo) -> BalanceView:
    """An account's balance as its owner sees it."""
    return BalanceView(
        account=info.account,
        balance_micro_credits=info.balance,
        held_micro_credits=info.held,
        available_micro_credits=info.available,
        total_recharged_micro_credits=info.total_recharged,
        total_rewarded_micro_credits=info.total_rewarded,
        total_consumed_micro_credits=info.total_consumed,
        total_refunded_micro_credits=info.total_refunded,
        total_expired_micro_credits=info.total_expired,
        total_adjusted_micro_credits=info.total_adjusted,
        blocked=info.blocked,
        suspended=info.suspended,
        seq=info.seq,
        updated_at=moment_or_none(info.updated_at),
        source="db",
    )


def account_view(info: AccountInfo) -> AccountView:
    """An account as an administrator sees it."""
    return AccountView(
        account=info.account,
        name=info.name,
        note=info.note,
        balance_micro_credits=info.balance,
        held_micro_credits=info.held,
        available_micro_credits=info.available,
        total_recharged_micro_credits=info.total_recharged,
        total_rewarded_micro_credits=info.total_rewarded,
        total_consumed_micro_credits=info.total_consumed,
        total_refunded_micro_credits=info.total_refunded,
        total_expired_micro_credits=info.total_expired,
        total_adjusted_micro_credits=info.total_adjusted,
        blocked=info.blocked,
        suspended=info.suspended,
        suspended_reason=info.suspended_reason,
        seq=info.seq,
        created_at=moment_or_none(info.created_at),
        updated_at=moment_or_none(info.updated_at),
    )


def transaction_view(entry: Transaction) -> TransactionView:
    """A ledger entry; the event id is unique in the ledger, so it is the transaction's id too."""
    return TransactionView(
        transaction_id=entry.event_id,
        event_id=entry.event_id,
        source=entry.source,
        source_label=entry.source_label,
        direction=entry.direction,
        amount_micro_credits=entry.amount,
        balance_after_micro_credits=entry.balance_after,
        status=entry.status,
        description=entry.description,
        metadata_json=entry.metadata_json,
        created_at=moment(entry.created_at),
        order_id=entry.order_id,
        source_ref_id=entry.source_ref_id,
    )


def transaction_list(page: Page[Transaction]) -> TransactionList:
    """A page of transactions."""
    return TransactionList(
        items=[transaction_view(entry) for entry in page.items],
        page=page.page,
        page_size=page.page_size,
        total=page.total,
        has_more=page.has_more,
        next_after=cursor(page.next_after),
        source="db",
    )


def price_rule_view(rule: Rule) -> PriceRuleView:
    """A rule with its prices as uploaded."""
    return PriceRuleView(
        rule_id=rule.id,
        scene=rule.scene,
        provider_name=rule.provider,
        model_name=rule.model,
        currency=rule.currency,
        credits_per_unit=rule.credits_per_unit,
        input_price=rule.input,
        cached_input_price=rule.cached_input,
        output_price=rule.output,
        reasoning_price=rule.reasoning,
        per_call_price=rule.per_call,
        free=rule.free,
        status=rule.status,
        priority=rule.priority,
        description=rule.description,
    )


def candidate_view(candidate: Candidate) -> CandidateView:
    """A rule that was considered."""
    return CandidateView(rule_id=candidate.rule.id, won=candidate.won, why=candidate.why)


def charge_view(charge: ExplainedCharge) -> ChargeView:
    """A call explained."""
    context, hold = charge.context, charge.hold
    return ChargeView(
        event_id=context.event_id,
        account=context.account,
        key_id=context.key_id,
        app=context.app,
        scene=context.scene,
        provider=context.provider,
        model_requested=context.model_requested,
        model_sent=context.model_sent,
        run_id=context.run_id,
        client_request_id=context.client_request_id,
        book=context.book,
        rule_id=context.rule,
        settlement=charge.settlement,
        amount_micro_credits=charge.amount,
        ceiling_micro_credits=charge.ceiling,
        quality=charge.quality,
        usage_source=charge.usage_source,
        revision=charge.revision,
        reason=charge.reason,
        usage=None if charge.usage is None else usage_view(charge.usage),
        pricing=None if charge.pricing is None else pricing_view(charge.pricing),
        hold=None
        if hold is None
        else HoldView(
            held_micro_credits=hold.amount,
            progress_micro_credits=hold.progress,
            state=hold.state,
        ),
        entries=[transaction_view(entry) for entry in charge.entries],
        started_at=moment(context.started_at),
        finished_at=moment_or_none(charge.finished_at),
        source="db",
    )


def usage_view(usage: Usage) -> UsageView:
    """Every class, also those that are 0."""
    return UsageView(
        input=usage.input,
        cached_input=usage.cached_input,
        cache_write_5m=usage.cache_write_5m,
        cache_write_1h=usage.cache_write_1h,
        audio_input=usage.audio_input,
        image_input=usage.image_input,
        output=usage.output,
        reasoning=usage.reasoning,
        audio_output=usage.audio_output,
    )


def pricing_view(pricing: Pricing) -> PricingView:
    """How an amount came about."""
    return PricingView(
        rule=None if pricing.rule is None else price_rule_view(pricing.rule),
        considered=[candidate_view(candidate) for candidate in pricing.considered],
        lines=[line_view(line) for line in pricing.lines],
        exact_micro_credits=pricing.exact,
        rounding_micro_credits=pricing.rounding,
        computed_micro_credits=pricing.computed,
    )


def line_view(line: Line) -> LineView:
    """A part of a price."""
    return LineView(
        kind=line.kind,
        quantity=line.quantity,
        price=line.rate,
        exact_micro_credits=line.micro_credits,
    )


def key_view(key: KeyInfo) -> KeyView:
    """A key without its token."""
    return KeyView(
        key_id=key.key_id,
        kind=key.kind,
        prefix=key.prefix,
        account=key.account,
        app=key.app,
        accounts=list(key.accounts),
        default_scene=key.default_scene,
        scenes=list(key.scenes),
        models=list(key.models),
        description=key.description,
        revoked=key.revoked,
        created_at=moment(key.created_at),
        expires_at=moment_or_none(key.expires_at),
        revoked_at=moment_or_none(key.revoked_at),
    )


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


def audit_view(row: AuditRow) -> AuditView:
    """An act."""
    return AuditView(
        audit_id=row.audit_id,
        actor=row.actor,
        action=row.action,
        target=row.target,
        detail=row.detail,
        created_at=moment(row.created_at),
    )


def cursor(after: int | None) -> str | None:
    """A cursor as clients pass it around; its meaning is ours."""
    return None if after is None else str(after)
