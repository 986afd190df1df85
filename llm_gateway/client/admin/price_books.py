"""Price books: a new address below /admin/price-books gets its method here."""

from datetime import datetime

from llm_gateway.api.views.price_books import (
    ActivationRequest,
    ActivationView,
    BookDetailView,
    BookList,
    BookView,
    DiffView,
    ExplainView,
    LintView,
    RollbackRequest,
    UploadView,
)
from llm_gateway.client.methods import AskList, get, pages, post
from llm_gateway.client.requests import PAGE_SIZE, Ask, Asked


class PriceBooks:
    """Versions of the price book."""

    @pages("/admin/price-books")
    def price_books(
        self, *, page: int = 1, page_size: int = PAGE_SIZE, after: str = ""
    ) -> AskList[BookList, BookView]:
        """List versions, newest first."""
        return AskList(BookList, page=page, page_size=page_size, after=after)

    @post("/admin/price-books")
    def upload_price_book(self, toml: str | bytes) -> Ask[UploadView]:
        """Store a TOML text as the next version; the text of a version is that version again."""
        return Ask(UploadView, body=toml, repeatable=True)

    @post("/admin/price-books/lint")
    def lint_price_book(self, toml: str | bytes, *, against_active: bool = True) -> Ask[LintView]:
        """Check a TOML text, also against the book in effect, and store nothing."""
        query = {"against_active": against_active}
        return Ask(LintView, query=query, body=toml, repeatable=True)

    @get("/admin/price-books/explain")
    def explain_price(
        self, *, scene: str, provider: str, model: str, version: int = 0
    ) -> Ask[ExplainView]:
        """Which rule prices a call, and why no other; version 0 is the one in effect."""
        query: dict[str, Asked] = {"scene": scene, "provider": provider, "model": model}
        query["version"] = version
        return Ask(ExplainView, query=query)

    @get("/admin/price-books/{version}")
    def price_book(self, version: int) -> Ask[BookDetailView]:
        """What is known of one version."""
        return Ask(BookDetailView, version)

    @get("/admin/price-books/{version}/diff")
    def diff_price_book(self, version: int, *, against: int = 0) -> Ask[DiffView]:
        """What a version changes against another one; version 0 is the one in effect."""
        return Ask(DiffView, version, query={"against": against})

    @get("/admin/price-books/{version}/text")
    def price_book_text(self, version: int) -> Ask[str]:
        """A version's TOML text as it was uploaded."""
        return Ask(str, version)

    @post("/admin/price-books/{version}/activate")
    def activate_price_book(
        self,
        version: int,
        *,
        at: datetime | None = None,
        replaces: int | None = None,
        followed_by: int | None = None,
    ) -> Ask[ActivationView]:
        """Put a version in effect, at a moment or as soon as every process can know of it.

        `replaces` is the version that you believe holds then, `followed_by` the next one that is
        scheduled; PriceBookConflictError tells if it is otherwise.
        """
        body = ActivationRequest(at=at, replaces=replaces, followed_by=followed_by)
        return Ask(ActivationView, version, body=body)

    @post("/admin/price-books/rollback")
    def roll_back_price_book(
        self, *, replaces: int | None = None, followed_by: int | None = None
    ) -> Ask[ActivationView]:
        """Put the version that held before the one which `replaces` names in effect again."""
        body = RollbackRequest(replaces=replaces, followed_by=followed_by)
        return Ask(ActivationView, body=body)
