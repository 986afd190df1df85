"""What the HTTP controllers work on, handed in by app.py; and the clock they go by."""

from collections.abc import Awaitable, Callable, Sequence
from enum import Flag, auto

import msgspec

from billing.accounts import Accounts
from billing.admins import Admins
from billing.audit import AuditTrail
from billing.books import PriceBooks
from billing.db.session import Database
from billing.keys import Keys
from billing.rerating.simulator import Simulator
from billing.settlement.desk import Desk
from billing.settlement.reconcile import Reconciler
from llm_gateway.estimate import Estimator
from llm_gateway.quoting import Quoter
from llm_gateway.secret import Secret
from llm_gateway.shop import Shop


class Surface(Flag):
    """Which endpoints an app has: with `admin_host`, one app has the first, another the second."""

    PUBLIC = auto()  # models, credit store, health
    OPERATIONS = auto()  # admin, metrics, schema, health
    ALL = PUBLIC | OPERATIONS


class ModelOffer(msgspec.Struct, frozen=True, kw_only=True):
    """A name that clients may ask for, and the (provider, model) pairs that serve it.

    "*" as name offers every model that a rule names exactly for one of its providers and that has no
    entry of its own; "*" as a pair's model is the name asked for. Without a pair all its providers
    are off.
    """

    name: str
    targets: tuple[tuple[str, str], ...]


class Dependency(msgspec.Struct, frozen=True, kw_only=True):
    """Something the gateway cannot do without, and whether it is there; no secret in `detail`."""

    name: str
    up: bool
    detail: str = ""


class OpsState(msgspec.Struct, frozen=True, kw_only=True):
    """What health and metrics need, of a gateway or a ledger worker."""

    metrics: Callable[[], Awaitable[str]]  # Prometheus' text format
    readiness: Callable[[], Awaitable[Sequence[Dependency]]]


class ApiState(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the controllers need."""

    database: Database
    keys: Keys
    books: PriceBooks
    accounts: Accounts
    audit: AuditTrail
    desk: Desk
    reconciler: Reconciler
    shop: Shop
    simulator: Simulator
    admins: Admins
    admin_token: Secret | None  # the owner's; None: only tokens in the database open anything
    now_ms: Callable[[], int]
    new_event_id: Callable[[int], str]
    offers: Callable[[], Sequence[ModelOffer]]
    quoter: Quoter
    estimator: Estimator
    ops: OpsState
