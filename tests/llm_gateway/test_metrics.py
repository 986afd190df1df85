"""/metrics: what is counted, under which names, and that no label can tell who called."""

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from billing.context import BillingContext
from billing.events import UsageQuality, UsageSource
from billing.settlement.delivery import BrokerFigures
from billing.settlement.reconcile import Finding, Report
from llm_gateway import clock
from llm_gateway.metrics import CHILDREN_MAX, Metrics
from llm_gateway.verdict import Verdict
from pricing_rules.usage import Usage

CONTEXT = BillingContext(
    event_id="e1", account="CANARY", key_id="CANARY", app="CANARY", scene="s", provider="openai",
    model_requested="CANARY", model_sent="CANARY", run_id="CANARY", client_request_id="CANARY",
    book=3, rule="u", started_at=1,
)  # fmt: skip


class EndedCall:
    """A call as call_ended sees it."""

    def __init__(self, outcome: str = "charged", *, streamed: bool = False) -> None:
        self.event_id = "e1"
        self.context: BillingContext | None = CONTEXT
        self.verdict: Verdict | None = Verdict(
            usage=Usage(), quality=UsageQuality.EXACT, source=UsageSource.PROVIDER, amount=1
        )
        self.outcome = outcome
        self.status = 200
        self.streamed = streamed
        self.started = clock.monotonic() - 2.0
        self.first_byte: float | None = self.started + 0.3
        self.grant = 5


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.render())
        for sample in family.samples
    }


def test_calls_are_counted_by_outcome_and_stream() -> None:
    metrics = Metrics()
    for _ in range(3):
        metrics.call_ended(EndedCall(streamed=True), 2.0)
    metrics.call_ended(EndedCall("insufficient_credit"), 2.0)
    found = samples(metrics)
    name = "llm_gateway_calls_total"
    assert found[name, (("outcome", "charged"), ("stream", "true"))] == 3
    assert found[name, (("outcome", "insufficient_credit"), ("stream", "false"))] == 1


def test_times_fall_into_their_buckets() -> None:
    metrics = Metrics()
    metrics.call_ended(EndedCall(), 2.0)
    found = samples(metrics)
    # The first byte came after 0.3 s, the end after 2.0 s and a little.
    first = "llm_gateway_first_token_seconds_bucket"
    assert found[first, (("le", "0.25"),)] == 0
    assert found[first, (("le", "0.5"),)] == 1
    whole = "llm_gateway_call_seconds_bucket"
    assert found[whole, (("le", "1.0"),)] == 0
    assert found[whole, (("le", "+Inf"),)] == 1
    assert found["llm_gateway_call_seconds_count", ()] == 1
    assert found["llm_gateway_call_seconds_sum", ()] >= 2


def test_a_call_without_an_answer_has_no_first_token() -> None:
    metrics = Metrics()
    call = EndedCall("invalid_api_key")
    call.context = call.verdict = call.first_byte = None
    metrics.call_ended(call, 2.0)
    found = samples(metrics)
    assert found["llm_gateway_first_token_seconds_count", ()] == 0
    assert not [name for name, _ in found if name == "llm_gateway_usage_quality_total"]


def test_admissions_errors_and_quality_have_their_labels() -> None:
    metrics = Metrics()
    metrics.admission("admitted")
    metrics.upstream_error("openai", "connect")
    metrics.call_ended(EndedCall(), 2.0)
    found = samples(metrics)
    assert found["llm_gateway_admissions_total", (("reason", "admitted"),)] == 1
    errors = (("kind", "connect"), ("provider", "openai"))
    assert found["llm_gateway_upstream_errors_total", errors] == 1
    quality = (("provider", "openai"), ("quality", "exact"))
    assert found["llm_gateway_usage_quality_total", quality] == 1


def test_a_cancelled_call_has_no_usage_quality() -> None:
    metrics = Metrics()
    call = EndedCall("empty")
    call.verdict = Verdict(
        usage=Usage(), quality=UsageQuality.MISSING, source=UsageSource.NONE, amount=0,
        cancelled=True,
    )  # fmt: skip
    metrics.call_ended(call, 2.0)
    assert "usage_quality_total{" not in metrics.render()


def test_gauges_show_what_was_set() -> None:
    metrics = Metrics()
    metrics.open_streams = 4
    metrics.held_micro_credits = 2**53 - 1
    metrics.unsettled_events = 7
    metrics.unsettled_age_seconds = 1.5
    metrics.spool_bytes = 512
    metrics.quarantined_events = 2
    found = samples(metrics)
    gauges = {name: value for (name, labels), value in found.items() if not labels}
    assert gauges["llm_gateway_open_streams"] == 4
    assert gauges["llm_gateway_held_micro_credits"] == 2**53 - 1
    assert gauges["llm_gateway_unsettled_events"] == 7
    assert gauges["llm_gateway_unsettled_age_seconds"] == 1.5
    assert gauges["llm_gateway_spool_bytes"] == 512
    assert gauges["llm_gateway_quarantined_events"] == 2


def test_no_label_tells_who_called() -> None:
    metrics = Metrics()
    metrics.call_ended(EndedCall(), 2.0)
    metrics.admission("admitted")
    metrics.upstream_error("openai", "status_500")
    text = metrics.render()
    assert "CANARY" not in text
    labels = {name for _, pairs in samples(metrics) for name, _ in pairs}
    assert labels == {"outcome", "stream", "reason", "provider", "kind", "quality", "le"}


def test_a_label_that_runs_wild_is_cut_off() -> None:
    metrics = Metrics()
    for number in range(CHILDREN_MAX + 50):
        metrics.admission(f"reason-{number}")
    found = samples(metrics)
    name = "llm_gateway_admissions_total"
    assert len([1 for key, _ in found if key == name]) == CHILDREN_MAX + 1
    assert found[name, (("reason", "other"),)] == 50


def test_invariants_have_a_figure_each_once_checked() -> None:
    metrics = Metrics()
    assert "invariant" not in metrics.render()
    wrong = Finding(check="R1", sentence="", count=3)
    failed = Finding(check="R2", sentence="", error="OSError")
    dear = Finding(check="R3", sentence="", skipped=True)
    metrics.reconciled(Report(at=5_000, full=True, findings=(wrong, failed, dear)))
    found = samples(metrics)
    name = "llm_gateway_invariant_violations"
    assert {key: value for key, value in found.items() if key[0] == name} == {
        (name, (("check", "R1"),)): 3
    }
    assert found["llm_gateway_reconcile_failures_total", (("check", "R2"),)] == 1
    assert found["llm_gateway_reconciled_timestamp_seconds", ()] == 5


def test_a_broker_has_figures_where_there_is_one() -> None:
    metrics = Metrics()
    assert "broker" not in metrics.render()
    figures = BrokerFigures(
        up=True,
        outages=1,
        published=5,
        failures=2,
        unreadable=0,
        settled_overdue=3,
        untold=0,
    )
    metrics.brokers += [lambda: figures, lambda: msgspec.structs.replace(figures, up=False)]
    text = metrics.render()
    assert "llm_gateway_broker_up 0.0" in text, "one that is down counts"
    assert "llm_gateway_broker_published_total 10.0" in text
    assert "llm_gateway_broker_settled_overdue_total 6.0" in text


def test_several_processes_are_told_apart_and_share_what_the_database_says() -> None:
    first, second = Metrics(), Metrics()
    first.call_ended(EndedCall(), 2.0)
    second.call_ended(EndedCall(), 2.0)
    second.call_ended(EndedCall(), 2.0)
    first.unsettled_events = second.unsettled_events = 7
    told = first.render_all({0: first.own_samples(), 1: second.own_samples(), 2: None})
    families = list(text_string_to_metric_families(told))
    assert len({family.name for family in families}) == len(families)
    found = {
        (sample.name, sample.labels.get("process")): sample.value
        for family in families
        for sample in family.samples
    }
    assert found["llm_gateway_calls_total", "0"] == 1
    assert found["llm_gateway_calls_total", "1"] == 2
    assert found["llm_gateway_call_seconds_count", "1"] == 2
    assert found["llm_gateway_unsettled_events", None] == 7
    assert [found["llm_gateway_process_up", number] for number in "012"] == [1, 1, 0]
    # The same families as of one process that is alone.
    alone = {family.name for family in text_string_to_metric_families(first.render())}
    assert {family.name for family in families} == alone | {"llm_gateway_process_up"}


def test_a_worker_has_no_figures_of_calls() -> None:
    class Settler:
        settled = 3
        quarantined = 1

    metrics = Metrics(takes_calls=False)
    metrics.settlers += [Settler(), Settler()]
    found = {name for name, _ in samples(metrics)}
    assert samples(metrics)["llm_gateway_settled_total", ()] == 6
    assert samples(metrics)["llm_gateway_set_aside_total", ()] == 2
    assert not {name for name in found if "call" in name or "admission" in name or "held" in name}
