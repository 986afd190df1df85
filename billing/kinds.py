"""Kinds, states and limits that ledger, API, client and commands share; nothing here needs a database."""

from enum import StrEnum
from typing import Final, Literal

from pricing_rules.rerate import NOT_AS_PRICED, SERVICE_TIER

ACTIVATION_LEAD_MS: Final = 5_000  # processes poll every second and stop at books.STALE_SECONDS
QUANTITY_MAX: Final = 1_000  # of a product in an order

ProductStatus = Literal["active", "inactive"]
RuleStatus = Literal["active", "inactive"]
CorrectionKind = Literal["adjustment", "charge_refund", "order_refund"]


class Role(StrEnum):
    """What an administrator is there for."""

    OWNER = "owner"
    FINANCE = "finance"
    OPERATOR = "operator"
    READ_ONLY = "read_only"


class KeyKind(StrEnum):
    """Whose credit a key spends."""

    USER = "user"  # its own account's
    APP = "app"  # that of the account named in X-Billing-User


class OrderStatus(StrEnum):
    """How far an order is."""

    PENDING = "pending"
    PAID = "paid"  # the money is there, the credit is on its way
    CREDITED = "credited"
    CANCELLED = "cancelled"


class GroupBy(StrEnum):
    """By what calls are put together."""

    MODEL = "model"  # as sent to the provider
    SCENE = "scene"
    PROVIDER = "provider"
    KEY = "key"
    ACCOUNT = "account"  # for administrators


class LeftOut(StrEnum):
    """Why a call keeps what it was charged."""

    NO_RULE = "no_rule"  # the book has no rule for it, which is not free
    ESTIMATE = "estimate"  # charged by estimate for want of its owner's word: its usage is unknown
    NO_USAGE = "no_usage"  # its hold was charged, for no usage was reported
    NOT_AS_PRICED = NOT_AS_PRICED  # not the price of its usage: an estimate cut to its hold
    SERVICE_TIER = SERVICE_TIER  # not recorded, or not listed, and the price depends on it
    UNKNOWN_BOOK = "unknown_book"  # the book or rule that it was priced by is not there
    TOO_LARGE = "too_large"  # the price is beyond what an entry can hold
    NOT_SETTLED = "not_settled"  # its charge is not in the ledger (yet)
    REFUNDED = "refunded"  # all of its charge was given back
    REFUSED = "refused"  # the ledger did not take the entry
