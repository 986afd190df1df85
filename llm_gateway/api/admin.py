"""The admin API: accounts, grants, keys, price books, the audit trail; api/operations.py has the rest.

Authorised by the admin token alone. Each act leaves a row in the audit trail.
"""

from typing import Annotated, Final

from litestar import Controller, Router, get, post
from litestar.di import NamedDependency, Provide
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter

from billing.accounts import ACCOUNT_ID_RULE, Grant, is_account_id
from billing.books import BooksStaleError, NoBookError
from billing.keys import KeyKind, NewKey
from billing.lists import PageRequest
from llm_gateway import errors
from llm_gateway.api.deps import ADMIN_ACTOR, provide_listing, require_admin
from llm_gateway.api.operations import (
    GuardController,
    HoldsController,
    OutboxController,
    QuarantineController,
    ReconcileController,
)
from llm_gateway.api.problems import ApiRequest
from llm_gateway.api.state import ApiState
from llm_gateway.api.views import (
    AccountList,
    AccountView,
    ActivationRequest,
    ActivationView,
    AuditList,
    BookList,
    BookView,
    ExplainView,
    GrantView,
    KeyList,
    KeyRequest,
    KeyView,
    LintView,
    NewAccount,
    NewGrant,
    NewKeyView,
    Suspension,
    UploadView,
    account_view,
    audit_view,
    book_view,
    candidate_view,
    cursor,
    key_view,
    milliseconds,
    moment,
    price_rule_view,
    problem_view,
    transaction_view,
)
from pricing_rules.lint import lint
from pricing_rules.match import explain

BOOK_BYTES_MAX: Final = 8 * 1024 * 1024  # pricing_rules takes 4,000,000 characters
EVENT_ID_CHARACTERS_MAX: Final = 200
GRANT_PREFIX: Final = "grant:"

Filter = Annotated[str, QueryParameter(max_length=128)]
AccountId = Annotated[str, QueryParameter(max_length=64)]


class AccountsController(Controller):
    """Accounts. An account also comes into being with its first grant or purchase."""

    path = "/accounts"

    @get("/")
    async def list_accounts(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        contains: Filter = "",
    ) -> AccountList:
        """List accounts in the order of their ids; `contains` looks in id and name."""
        page = await api.accounts.page(listing, contains=contains)
        return AccountList(
            items=[account_view(info) for info in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/")
    async def create_account(
        self, api: NamedDependency[ApiState], data: JSONBody[NewAccount]
    ) -> AccountView:
        """Make an account with a balance of 0; 409 if there is one by this id."""
        if not is_account_id(data.account):
            raise _wrong_account("account")
        info = await api.accounts.create(
            data.account, name=data.name, remark=data.note, actor=ADMIN_ACTOR
        )
        return account_view(info)

    @get("/{account:str}")
    async def get_account(
        self, api: NamedDependency[ApiState], account: FromPath[str]
    ) -> AccountView:
        """Get one account."""
        return account_view(await api.accounts.get(account))

    @post("/{account:str}/suspend", status_code=200)
    async def suspend(
        self, api: NamedDependency[ApiState], account: FromPath[str], data: JSONBody[Suspension]
    ) -> AccountView:
        """Admit no further call of the account; calls that run are not cut."""
        return account_view(await api.accounts.suspend(account, data.reason, actor=ADMIN_ACTOR))

    @post("/{account:str}/unsuspend", status_code=200)
    async def unsuspend(
        self, api: NamedDependency[ApiState], account: FromPath[str]
    ) -> AccountView:
        """Admit calls again."""
        return account_view(await api.accounts.unsuspend(account, actor=ADMIN_ACTOR))


class GrantsController(Controller):
    """Credit given by hand."""

    path = "/grants"

    @post("/", status_code=200)
    async def grant(
        self,
        api: NamedDependency[ApiState],
        data: JSONBody[NewGrant],
        idempotency_key: Annotated[
            str, HeaderParameter(name="Idempotency-Key", max_length=EVENT_ID_CHARACTERS_MAX)
        ] = "",
    ) -> GrantView:
        """Give credit. Send an event_id or an Idempotency-Key, and repeating gives it once.

        409 if the id was used with another account or amount.
        """
        done = await api.accounts.grant(
            Grant(
                event_id=_grant_id(api, data.event_id, idempotency_key),
                account=data.account,
                amount=data.amount_micro_credits,
                description=data.description,
                source=data.source,
                source_label=data.source_label,
            ),
            actor=ADMIN_ACTOR,
        )
        return GrantView(
            repeated=done.repeated,
            entry=transaction_view(done.entry),
            account=account_view(done.account),
        )


class KeysController(Controller):
    """API keys."""

    path = "/keys"

    @get("/")
    async def list_keys(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        account: AccountId = "",
    ) -> KeyList:
        """List keys, newest first, of one account or all."""
        page = await api.keys.page(listing, account=account)
        return KeyList(
            items=[key_view(key) for key in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
        )

    @post("/")
    async def create_key(
        self, api: NamedDependency[ApiState], data: JSONBody[KeyRequest]
    ) -> NewKeyView:
        """Make a key. The token is in this answer and can never be shown again."""
        info, token = await api.keys.create(_new_key(data, api.now_ms()), actor=ADMIN_ACTOR)
        return NewKeyView(key=key_view(info), token=token)

    @post("/{key_id:str}/revoke", status_code=200)
    async def revoke_key(self, api: NamedDependency[ApiState], key_id: FromPath[str]) -> KeyView:
        """Withdraw a key for good; other processes refuse it within a second."""
        info = await api.keys.revoke(key_id, actor=ADMIN_ACTOR)
        if info is None:
            raise errors.NotFoundError("There is no such key.")
        return key_view(info)


class BooksController(Controller):
    """Price books: upload, look at, put in effect."""

    path = "/price-books"

    @get("/")
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

    @post("/", request_max_body_size=BOOK_BYTES_MAX)
    async def upload(self, api: NamedDependency[ApiState], request: ApiRequest) -> UploadView:
        """Store the TOML text in the body as the next version; it is not in effect by that.

        400 with all problems if it has errors. The very text of a version is that version again.
        """
        uploaded = await api.books.upload(await _text(request), actor=ADMIN_ACTOR)
        return UploadView(
            version=uploaded.version,
            repeated=uploaded.repeated,
            warnings=[problem_view(problem) for problem in uploaded.warnings],
        )

    @post("/lint", request_max_body_size=BOOK_BYTES_MAX, status_code=200)
    async def lint_text(self, request: ApiRequest) -> LintView:
        """Check the TOML text in the body and store nothing."""
        problems = lint(await _text(request))
        return LintView(
            acceptable=not any(problem.level == "error" for problem in problems),
            problems=[problem_view(problem) for problem in problems],
        )

    @post("/rollback", status_code=200)
    async def rollback(self, api: NamedDependency[ApiState]) -> ActivationView:
        """Put the version that held before the current one in effect again."""
        activation = await api.books.rollback(actor=ADMIN_ACTOR)
        return ActivationView(
            version=activation.version, effective_from=moment(activation.effective_from)
        )

    @get("/explain")
    async def explain_rule(
        self,
        api: NamedDependency[ApiState],
        scene: Filter,
        provider: Filter,
        model: Filter,
        version: FromQuery[int] = 0,
    ) -> ExplainView:
        """Tell which rule prices a call, and why no other; version 0 is the one in effect."""
        if version:
            book = await api.books.get(version)
        else:
            version, book = api.books.current(api.now_ms())
        candidates = explain(book, scene, provider, model)
        won = [candidate.rule for candidate in candidates if candidate.won]
        return ExplainView(
            book=version,
            rule=price_rule_view(won[0]) if won else None,
            considered=[candidate_view(candidate) for candidate in candidates],
        )

    @get("/{version:int}")
    async def get_book(self, api: NamedDependency[ApiState], version: FromPath[int]) -> BookView:
        """Get what is known of one version."""
        return book_view(await api.books.info(version), _current_version(api))

    @get("/{version:int}/text", media_type="application/toml")
    async def get_text(self, api: NamedDependency[ApiState], version: FromPath[int]) -> str:
        """Get a version's TOML text as it was uploaded."""
        return await api.books.text(version)

    @post("/{version:int}/activate", status_code=200)
    async def activate(
        self,
        api: NamedDependency[ApiState],
        version: FromPath[int],
        data: JSONBody[ActivationRequest | None] = None,
    ) -> ActivationView:
        """Put a version in effect, at least 5 s ahead: by then every process knows of it."""
        at = None if data is None or data.at is None else milliseconds(data.at)
        activation = await api.books.activate(version, at, actor=ADMIN_ACTOR)
        return ActivationView(
            version=activation.version, effective_from=moment(activation.effective_from)
        )


class AuditController(Controller):
    """What administrators did."""

    @get("/audit")
    async def audit(
        self,
        api: NamedDependency[ApiState],
        listing: NamedDependency[PageRequest],
        action: Filter = "",
        target: Filter = "",
    ) -> AuditList:
        """List administrators' acts, newest first."""
        page = await api.audit.page(listing, action=action, target=target)
        return AuditList(
            items=[audit_view(row) for row in page.items],
            page=page.page,
            page_size=page.page_size,
            total=page.total,
            has_more=page.has_more,
            next_after=cursor(page.next_after),
        )


def admin_router() -> Router:
    """Everything below /admin, for the bearer of the admin token."""
    return Router(
        "/admin",
        route_handlers=[
            AccountsController,
            GrantsController,
            KeysController,
            BooksController,
            AuditController,
            HoldsController,
            OutboxController,
            QuarantineController,
            GuardController,
            ReconcileController,
        ],
        guards=[require_admin],
        dependencies={"listing": Provide(provide_listing, sync_to_thread=False)},
        tags=["admin"],
    )


def _grant_id(api: ApiState, event_id: str, idempotency_key: str) -> str:
    """The ledger's event id of a grant; a prefix keeps ids by header apart from calls."""
    if event_id and idempotency_key:
        raise errors.InvalidRequestError(
            "Send either event_id or the header Idempotency-Key.", param="event_id"
        )
    if event_id:
        return event_id
    return GRANT_PREFIX + (idempotency_key or api.new_event_id(api.now_ms()))


def _new_key(data: KeyRequest, now_ms: int) -> NewKey:
    """Check what the shape alone does not say."""
    if data.kind is KeyKind.USER:
        if not is_account_id(data.account):
            raise _wrong_account("account")
        if data.app or data.accounts:
            raise errors.InvalidRequestError(
                "A user key has neither app nor accounts.", param="app"
            )
    else:
        if not data.app.strip():
            raise errors.InvalidRequestError("An app key needs the name of its app.", param="app")
        if data.account:
            raise errors.InvalidRequestError(
                "An app key has no account of its own; `accounts` restricts what it may bill.",
                param="account",
            )
    if not all(is_account_id(account) for account in data.accounts):
        raise _wrong_account("accounts")
    expires_at = None if data.expires_at is None else milliseconds(data.expires_at)
    if expires_at is not None and expires_at <= now_ms:
        raise errors.InvalidRequestError("expires_at lies in the past.", param="expires_at")
    return NewKey(
        kind=data.kind,
        account=data.account,
        app=data.app.strip(),
        accounts=tuple(data.accounts),
        default_scene=data.default_scene,
        scenes=tuple(data.scenes),
        models=tuple(data.models),
        description=data.description,
        expires_at=expires_at,
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


def _wrong_account(param: str) -> errors.InvalidRequestError:
    return errors.InvalidRequestError(f"Not an account id: {ACCOUNT_ID_RULE}.", param=param)
