"""/admin/price-books: upload, look at, put in effect."""

from typing import Final

from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from billing.admins import Admin, Permission
from billing.books import BooksStaleError, NoBookError
from billing.lists import PageRequest
from llm_gateway import errors
from llm_gateway.api.admin.params import Filter, Version, VersionAsked
from llm_gateway.api.problems import ApiRequest
from llm_gateway.api.state import ApiState
from llm_gateway.api.views.price_books import (
    ActivationRequest,
    ActivationView,
    BookList,
    BookView,
    ExplainView,
    LintView,
    UploadView,
    book_view,
    problem_view,
)
from llm_gateway.api.views.prices import candidate_view, price_rule_view
from llm_gateway.api.views.shared import cursor, milliseconds, moment
from pricing_rules.lint import lint
from pricing_rules.match import explain

BOOK_BYTES_MAX: Final = 8 * 1024 * 1024  # pricing_rules takes 4,000,000 characters


class BooksController(Controller):
    """Price books: upload, look at, put in effect."""

    path = "/price-books"

    @get("/", permission=Permission.READ)
    async def list_books(
        self, api: NamedDependency[ApiState], listing: NamedDependency[PageRequest]
    ) -> BookList:
        """List versions, newest first."""
        page = await api.books.page(listing)
        current = _current_version(api)
        return BookList(
            items=[book_view(info, current) for info in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
            next_after=cursor(page.next_after),
        )

    @post("/", request_max_body_size=BOOK_BYTES_MAX, permission=Permission.PRICE_BOOKS)
    async def upload(
        self, api: NamedDependency[ApiState], admin: NamedDependency[Admin], request: ApiRequest
    ) -> UploadView:
        """Store the TOML text in the body as the next version; it is not in effect by that.

        400 with all problems if it has errors. The very text of a version is that version again.
        """
        uploaded = await api.books.upload(await _text(request), actor=admin.name)
        return UploadView(
            version=uploaded.version,
            repeated=uploaded.repeated,
            warnings=[problem_view(problem) for problem in uploaded.warnings],
        )

    @post(
        "/lint", request_max_body_size=BOOK_BYTES_MAX, status_code=200, permission=Permission.READ
    )
    async def lint_text(self, request: ApiRequest) -> LintView:
        """Check the TOML text in the body and store nothing."""
        problems = lint(await _text(request))
        return LintView(
            acceptable=not any(problem.level == "error" for problem in problems),
            problems=[problem_view(problem) for problem in problems],
        )

    @post("/rollback", status_code=200, permission=Permission.PRICE_BOOKS)
    async def rollback(
        self, api: NamedDependency[ApiState], admin: NamedDependency[Admin]
    ) -> ActivationView:
        """Put the version that held before the current one in effect again."""
        activation = await api.books.rollback(actor=admin.name)
        return ActivationView(
            version=activation.version, effective_from=moment(activation.effective_from)
        )

    @get("/explain", permission=Permission.READ)
    async def explain_rule(
        self,
        api: NamedDependency[ApiState],
        scene: Filter,
        provider: Filter,
        model: Filter,
        version: VersionAsked = 0,
    ) -> ExplainView:
        """Tell which rule prices a call, and why no other; version 0 is the one in effect."""
        if version:
            book = await api.books.get(version)
        else:
            version, book = api.books.current(api.now_ms())
        candidates = explain(book, scene, provider, model, api.now_ms())
        won = [candidate.rule for candidate in candidates if candidate.won]
        return ExplainView(
            book=version,
            rule=price_rule_view(won[0]) if won else None,
            considered=[candidate_view(candidate) for candidate in candidates],
        )

    @get("/{version:int}", permission=Permission.READ)
    async def get_book(self, api: NamedDependency[ApiState], version: Version) -> BookView:
        """Get what is known of one version."""
        return book_view(await api.books.info(version), _current_version(api))

    @get("/{version:int}/text", media_type="application/toml", permission=Permission.READ)
    async def get_text(self, api: NamedDependency[ApiState], version: Version) -> str:
        """Get a version's TOML text as it was uploaded."""
        return await api.books.text(version)

    @post("/{version:int}/activate", status_code=200, permission=Permission.PRICE_BOOKS)
    async def activate(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        version: Version,
        data: JSONBody[ActivationRequest | None] = None,
    ) -> ActivationView:
        """Put a version in effect, at least 5 s ahead: by then every process knows of it."""
        at = None if data is None or data.at is None else milliseconds(data.at)
        activation = await api.books.activate(version, at, actor=admin.name)
        return ActivationView(
            version=activation.version, effective_from=moment(activation.effective_from)
        )


async def _text(request: ApiRequest) -> str:
    try:
        return (await request.body()).decode()
    except UnicodeDecodeError:
        raise errors.InvalidRequestError("The body is not UTF-8 text.") from None


def _current_version(api: ApiState) -> int | None:
    try:
        return api.books.current(api.now_ms())[0]
    except (NoBookError, BooksStaleError):
        return None
