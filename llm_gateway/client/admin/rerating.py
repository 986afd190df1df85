"""What past calls would cost by another price book, and charging them by it.

Simulations of long histories take a while: what ends in `_lines` tells its progress meanwhile, a
line of JSON at a time (llm_gateway.api.views.rerating: ProgressLine, at last ResultLine).
"""

from datetime import datetime

from llm_gateway.api.views.rerating import (
    PreviewRequest,
    RerateRequest,
    RunList,
    RunStartedView,
    RunView,
    SimulationView,
)
from llm_gateway.client.methods import AskList, download, get, pages, post
from llm_gateway.client.requests import PAGE_SIZE, Ask


class Rerating:
    """Simulations, which write nothing, and runs, which post the differences."""

    @get("/admin/price-books/{version}/simulate")
    def simulate_price_book(
        self,
        version: int,
        *,
        days: int | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
    ) -> Ask[SimulationView]:
        """What recorded calls would have cost by a version."""
        return Ask(SimulationView, version, query={"days": days, "from": from_, "to": to})

    @download("/admin/price-books/{version}/simulate.ndjson")
    def simulate_price_book_lines(
        self,
        version: int,
        *,
        days: int | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
    ) -> Ask[bytes]:
        """As `simulate_price_book`, telling the progress."""
        return Ask(bytes, version, query={"days": days, "from": from_, "to": to})

    @post("/admin/price-books/simulate")
    def simulate_toml(
        self,
        toml: str | bytes,
        *,
        days: int | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
    ) -> Ask[SimulationView]:
        """What recorded calls would have cost by a TOML text, which is not stored."""
        query = {"days": days, "from": from_, "to": to}
        return Ask(SimulationView, query=query, body=toml, repeatable=True)

    @download("/admin/price-books/simulate.ndjson", verb="POST")
    def simulate_toml_lines(
        self,
        toml: str | bytes,
        *,
        days: int | None = None,
        from_: datetime | None = None,
        to: datetime | None = None,
    ) -> Ask[bytes]:
        """As `simulate_toml`, telling the progress."""
        query = {"days": days, "from": from_, "to": to}
        return Ask(bytes, query=query, body=toml, repeatable=True)

    @post("/admin/rerating/preview")
    def preview_rerating(self, book: int, *, from_: datetime, to: datetime) -> Ask[SimulationView]:
        """What a run would post, against what the ledger charges now; nothing is posted."""
        body = PreviewRequest(book=book, from_=from_, to=to)
        return Ask(SimulationView, body=body, repeatable=True)

    @download("/admin/rerating/preview.ndjson", verb="POST")
    def preview_rerating_lines(self, book: int, *, from_: datetime, to: datetime) -> Ask[bytes]:
        """As `preview_rerating`, telling the progress."""
        body = PreviewRequest(book=book, from_=from_, to=to)
        return Ask(bytes, body=body, repeatable=True)

    @post("/admin/rerating")
    def start_rerating(
        self,
        book: int,
        *,
        from_: datetime,
        to: datetime,
        reason: str,
        idempotency_key: str | None = None,
    ) -> Ask[RunStartedView]:
        """Charge calls by a book, in the background; the Idempotency-Key is the run's id."""
        body = RerateRequest(book=book, from_=from_, to=to, reason=reason)
        return Ask(RunStartedView, body=body).once(idempotency_key)

    @pages("/admin/rerating")
    def reratings(
        self, *, page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[RunList, RunView]:
        """List runs, newest first."""
        return AskList(RunList, page=page, page_size=page_size, after=after)

    @get("/admin/rerating/{run_id}")
    def rerating(self, run_id: str) -> Ask[RunView]:
        """A run as it stands."""
        return Ask(RunView, run_id)
