"""What /metrics shows: counts and times of each process, and gauges that app.py keeps current.

Counting happens on the event loop alone, so plain integers do; prometheus-client only renders them.
No label names an account or a key, and no label's value comes from a client.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final, Protocol

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from billing.backlog import Figures
from billing.context import BillingContext
from billing.settlement.delivery import BrokerFigures
from billing.settlement.reconcile import Report
from llm_gateway import clock
from llm_gateway.verdict import Verdict

FIRST_TOKEN_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
CALL_SECONDS: Final = (0.005, 0.01, 0.05, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 3600)
PROCESS_LABEL: Final = "process"  # the number of one of several; its successor has the same
CHILDREN_MAX: Final = 200  # of one counter; a label that runs wild must not fill the memory
OTHER: Final = "other"


class EndedCall(Protocol):
    """What counting and logging need of a call that is over; llm_gateway.call.Call is one."""

    event_id: str
    context: BillingContext | None  # None: ended before it was admitted
    verdict: Verdict | None
    outcome: str
    status: int
    streamed: bool
    started: float  # clock.monotonic()
    first_byte: float | None  # clock.monotonic()
    grant: int  # micro-credits


class Settler(Protocol):
    """Who posts charges to the ledger, and how many it has posted or set aside."""

    settled: int
    quarantined: int


class Samples(msgspec.Struct, frozen=True, array_like=True):
    """A family of one process, as the others are told of it."""

    name: str
    text: str
    type: str
    samples: list[tuple[str, dict[str, str], float]]


class _Counter:
    """Counts by labels. `add` costs a dictionary look-up and an addition."""

    def __init__(self, name: str, text: str, labels: tuple[str, ...]) -> None:
        self._name = name
        self._text = text
        self._labels = labels
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, *labels: str) -> None:
        counts = self._counts
        if labels in counts:
            counts[labels] += 1
        elif len(counts) < CHILDREN_MAX:
            counts[labels] = 1
        else:
            rest = (OTHER,) * len(self._labels)
            counts[rest] = counts.get(rest, 0) + 1

    def family(self) -> Metric:
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for labels, count in list(self._counts.items()):  # /metrics may be in a thread
            family.add_metric(labels, count)
        return family


class _Times:
    """A histogram of seconds."""

    def __init__(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._text = text
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._sum += seconds

    def family(self) -> Metric:
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        total = 0
        buckets: list[tuple[str, float]] = []
        for name, count in zip(names, self._counts, strict=True):
            total += count
            buckets.append((name, total))
        family = HistogramMetricFamily(self._name, self._text)
        family.add_metric([], buckets, self._sum)
        return family


class Metrics(Collector):
    """The figures of one process. The attributes are gauges: whoever knows them sets them.

    `takes_calls`: False for a ledger worker, which has no figures of calls.
    """

    def __init__(self, *, takes_calls: bool = True) -> None:
        self._takes_calls = takes_calls
        self.open_streams = 0
        self.held_micro_credits = 0  # of all accounts together
        self.unsettled_events = 0  # charges that are not in the ledger yet
        self.unsettled_age_seconds = 0.0  # of the oldest of them
        self.spool_bytes = 0
        self.quarantined_events = 0
        self._calls = _Counter("llm_gateway_calls", "Calls that ended", ("outcome", "stream"))
        self._admissions = _Counter("llm_gateway_admissions", "Asked for a hold", ("reason",))
        self._limited = _Counter(
            "llm_gateway_limited", "Calls that a limit of their key refused", ("limit",)
        )
        self._upstream_errors = _Counter(
            "llm_gateway_upstream_errors", "Attempts that a provider failed", ("provider", "kind")
        )
        self._quality = _Counter(
            "llm_gateway_usage_quality",
            "Charges by how far the usage can be trusted",
            ("provider", "quality"),
        )
        self._first_token = _Times(
            "llm_gateway_first_token_seconds",
            "From the request's head to the answer's first byte",
            FIRST_TOKEN_SECONDS,
        )
        self._seconds = _Times(
            "llm_gateway_call_seconds", "From the request's head to the call's end", CALL_SECONDS
        )
        self.settlers: list[Settler] = []  # each that has settled in this process
        self.brokers: list[Callable[[], BrokerFigures]] = []  # one for each delivery
        self._violations: dict[str, int] = {}  # by check, as of its last run
        self._reconciled_at = 0.0
        self._check_failures = _Counter(
            "llm_gateway_reconcile_failures", "Checks that could not be run", ("check",)
        )
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def admission(self, reason: str) -> None:
        """A hold was asked for: "admitted", or why it was not granted."""
        self._admissions.add(reason)

    def limited(self, limit: str) -> None:
        """A limit of a key refused a call: requests, tokens or concurrency.

        "unavailable": the limits could not be counted; "uncounted": so the call passed, as
        `on_unavailable` allows.
        """
        self._limited.add(limit)

    def upstream_error(self, provider: str, kind: str) -> None:
        """An attempt failed at a provider of the settings."""
        self._upstream_errors.add(provider, kind)

    def call_ended(self, call: EndedCall, seconds: float) -> None:
        """A call is over, one way or the other, and took so long."""
        self._calls.add(call.outcome or "unknown", "true" if call.streamed else "false")
        self._seconds.add(seconds)
        if call.first_byte is not None:
            self._first_token.add(call.first_byte - call.started)
        if call.verdict is not None and call.context is not None and not call.verdict.cancelled:
            self._quality.add(call.context.provider, call.verdict.quality)

    def reconciled(self, report: Report) -> None:
        """The invariants were checked; one that was skipped keeps its last figure."""
        for finding in report.findings:
            if finding.error:
                self._check_failures.add(finding.check)
            elif not finding.skipped:
                self._violations[finding.check] = finding.count
        self._reconciled_at = report.at / 1000

    def note_backlog(self, figures: Figures) -> None:
        """What waits in the database, read just now."""
        oldest = figures.oldest_unsettled_at
        age_ms = 0 if oldest is None else max(0, clock.now_ms() - oldest)
        self.unsettled_events = figures.unsettled
        self.unsettled_age_seconds = age_ms / 1000
        self.quarantined_events = figures.quarantined

    def render(self) -> str:
        """Everything in Prometheus' text format; CONTENT_TYPE is its type."""
        return generate_latest(self._registry).decode()

    def own_samples(self) -> list[Samples]:
        """The families that each of several processes has for itself."""
        return [
            Samples(
                name=family.name,
                text=family.documentation,
                type=family.type,
                samples=[(each.name, each.labels, each.value) for each in family.samples],
            )
            for family in self._own()
        ]

    def render_all(self, processes: Mapping[int, Sequence[Samples] | None]) -> str:
        """Of all processes of one machine, told apart by a label; None: it did not answer."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Merged(processes, list(self._shared())))
        return generate_latest(registry).decode()

    def collect(self) -> Iterator[Metric]:
        """All families, as prometheus-client asks for them."""
        yield from self._own()
        yield from self._shared()

    def _own(self) -> Iterator[Metric]:
        """What this process counts."""
        if self._takes_calls:
            yield self._calls.family()
            yield self._admissions.family()
            yield self._limited.family()
            yield self._upstream_errors.family()
            yield self._quality.family()
            yield self._first_token.family()
            yield self._seconds.family()
        yield self._check_failures.family()
        yield from self._reconciliation()
        yield from _broker_families([figures() for figures in self.brokers])
        yield from _settler_families(self.settlers)
        if self._takes_calls:
            text = "Streamed answers now running"
            yield GaugeMetricFamily("llm_gateway_open_streams", text, value=self.open_streams)
        text = "Charges kept in files while the database was away"
        yield GaugeMetricFamily("llm_gateway_spool_bytes", text, value=self.spool_bytes)

    def _shared(self) -> Iterator[Metric]:
        """What the database says: every process would say the same."""
        if self._takes_calls:
            text, held = "Credit held for running calls", self.held_micro_credits
            yield GaugeMetricFamily("llm_gateway_held_micro_credits", text, value=held)
        for name, text, value in (
            ("unsettled_events", "Charges not yet in the ledger", self.unsettled_events),
            ("unsettled_age_seconds", "Age of the oldest of them", self.unsettled_age_seconds),
            ("quarantined_events", "Charges that wait for a person", self.quarantined_events),
        ):
            yield GaugeMetricFamily(f"llm_gateway_{name}", text, value=value)

    def _reconciliation(self) -> Iterator[Metric]:
        """Nothing where this process has not checked anything."""
        if not self._reconciled_at:
            return
        violations = GaugeMetricFamily(
            "llm_gateway_invariant_violations",
            "Where an invariant does not hold",
            labels=("check",),
        )
        for check, count in list(self._violations.items()):
            violations.add_metric((check,), count)
        yield violations
        yield GaugeMetricFamily(
            "llm_gateway_reconciled_timestamp_seconds",
            "When the invariants were last checked here",
            value=self._reconciled_at,
        )


class _Merged(Collector):
    """Families of several processes, each once, and what they share."""

    def __init__(
        self, processes: Mapping[int, Sequence[Samples] | None], shared: Sequence[Metric]
    ) -> None:
        self._processes = processes
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        """As prometheus-client asks for them."""
        merged: dict[str, Metric] = {}
        up = GaugeMetricFamily(
            "llm_gateway_process_up",
            "1: the process of this number answers",
            labels=(PROCESS_LABEL,),
        )
        for number, families in sorted(self._processes.items()):
            up.add_metric((str(number),), int(families is not None))
            for each in families or ():
                family = merged.setdefault(each.name, Metric(each.name, each.text, each.type))
                for name, labels, value in each.samples:
                    family.add_sample(name, labels | {PROCESS_LABEL: str(number)}, value)
        yield from merged.values()
        yield up
        yield from self._shared


def _settler_families(settlers: Sequence[Settler]) -> Iterator[Metric]:
    if not settlers:
        return
    for name, text, count in (
        ("settled", "Charges posted here", sum(each.settled for each in settlers)),
        ("set_aside", "Charges put into quarantine here", sum(s.quarantined for s in settlers)),
    ):
        yield CounterMetricFamily(f"llm_gateway_{name}", text, value=count)


def _broker_families(all_figures: Sequence[BrokerFigures]) -> Iterator[Metric]:
    if not all_figures:
        return
    up = all(figures.up for figures in all_figures)
    yield GaugeMetricFamily("llm_gateway_broker_up", "1: the broker is connected", value=int(up))
    for name, text in (
        ("outages", "Times that the broker was lost"),
        ("published", "Charges sent over the broker, repeats included"),
        ("failures", "Rounds that broker or database failed"),
        ("unreadable", "Messages that went into quarantine"),
        ("settled_overdue", "Charges settled without a message"),
        ("untold", "Settled charges that no message told of"),
    ):
        count = sum(getattr(figures, name) for figures in all_figures)
        yield CounterMetricFamily(f"llm_gateway_broker_{name}", text, value=count)
