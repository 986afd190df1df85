"""/admin/price-books: upload, look at, compare, put in effect."""

from typing import Final

import msgspec
from litestar import Controller, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from billing.admins import Admin, Permission
from billing.books import BookRefusedError, Wanted
from billing.lists import PageRequest
from llm_gateway.api import problems
from llm_gateway.api.admin.params import Filter, Flag, Version, VersionAsked
from llm_gateway.api.problems import ApiRequest
from llm_gateway.api.state import ApiState
from llm_gateway.api.uploads import read_upload
from llm_gateway.api.views.price_books import (
    ActivationRequest,
    ActivationView,
    BookDetailView,
    BookList,
    DiffView,
    ExplainView,
    LintView,
    RollbackRequest,
    UploadView,
    activation_view,
    book_view,
    diff_view,
    problem_view,
    scheduled_view,
)
from llm_gateway.api.views.prices import candidate_view, price_rule_view
from llm_gateway.api.views.shared import cursor, milliseconds, moment_or_none
from pricing_rules.export import dump_rule
from pricing_rules.match import explain

BOOK_BYTES_MAX: Final = 8 * 1024 * 1024  # pricing_rules takes 6,000,000 characters


class BooksController(Controller):
    """Price books: upload, look at, put in effect."""

    path = "/price-books"

    @get("/", permission=Permission.READ)
    async def list_books(
        self, api: NamedDependency[ApiState], listing: NamedDependency[PageRequest]
    ) -> BookList:
        """List versions, newest first."""
        page = await api.books.page(listing)
        activation, later = await api.books.schedule()
        current = None if activation is None else activation.version
        return BookList(
            current=current,
            scheduled=[scheduled_view(each) for each in later],
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
        """Store TOML, sent as the body or as the file of a form, as the next version.

        It is not in effect by that. 400 with all problems, each with its place, if it has errors;
        warnings otherwise: also of prices far from those in effect, and of calls of the last seven
        days that it does not price. The very text of a version is that version again.
        """
        upload = await read_upload(request)
        try:
            uploaded = await api.books.upload(upload.content, actor=admin.name)
        except BookRefusedError as error:
            raise problems.BookRefusedError(str(error), error.problems, file=upload.name) from error
        return UploadView(
            version=uploaded.version,
            repeated=uploaded.repeated,
            warnings=[problem_view(problem) for problem in uploaded.warnings],
        )

    @post(
        "/lint", request_max_body_size=BOOK_BYTES_MAX, status_code=200, permission=Permission.READ
    )
    async def lint_text(
        self, api: NamedDependency[ApiState], request: ApiRequest, *, against_active: Flag = True
    ) -> LintView:
        """Check TOML, sent as for an upload, and store nothing.

        `against_active=false` leaves out what an upload tells of the book in effect and of the
        calls of the last seven days.
        """
        upload = await read_upload(request)
        found = await api.books.review(upload.content, against_active=against_active)
        return LintView(
            acceptable=found.book is not None,
            problems=[problem_view(problem) for problem in found.problems],
        )

    @post("/rollback", status_code=200, permission=Permission.PRICE_BOOKS)
    async def rollback(
        self,
        api: NamedDependency[ApiState],
        admin: NamedDependency[Admin],
        data: JSONBody[RollbackRequest | None] = None,
    ) -> ActivationView:
        """Put the version that held before the one which `replaces` names in effect again.

        Rolling back once more goes one step further back. 409 if another one is in effect.
        """
        asked = data or RollbackRequest()
        wanted = Wanted(replaces=asked.replaces, followed_by=asked.followed_by)
        return activation_view(await api.books.rollback(wanted, actor=admin.name))

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
            rule_toml=dump_rule(won[0], book) if won else "",
            considered=[candidate_view(candidate) for candidate in candidates],
        )

    @get("/{version:int}", permission=Permission.READ)
    async def get_book(self, api: NamedDependency[ApiState], version: Version) -> BookDetailView:
        """Get what is known of one version."""
        activation, _ = await api.books.schedule()
        current = None if activation is None else activation.version
        shown = book_view(await api.books.info(version), current)
        planned_from = (await api.books.get(version)).effective_from
        return BookDetailView(
            **msgspec.structs.asdict(shown), planned_from=moment_or_none(planned_from)
        )

    @get("/{version:int}/diff", permission=Permission.READ)
    async def diff_books(
        self, api: NamedDependency[ApiState], version: Version, against: VersionAsked = 0
    ) -> DiffView:
        """Tell what a version changes against another one; version 0 is the one in effect."""
        found = await api.books.compare(version, against or None)
        return diff_view(found.diff, found.version, found.against)

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
        """Put a version in effect, at least 5 s ahead: by then every process knows of it.

        `replaces` names the version that holds by then, `followed_by` the next one that is
        scheduled after it; 409, which tells both, if it is otherwise. What holds then already is
        not activated again.
        """
        asked = data or ActivationRequest()
        wanted = Wanted(
            replaces=asked.replaces,
            followed_by=asked.followed_by,
            at=None if asked.at is None else milliseconds(asked.at),
        )
        return activation_view(await api.books.activate(version, wanted, actor=admin.name))
