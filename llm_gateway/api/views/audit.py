"""The audit trail."""

from typing import TYPE_CHECKING

import msgspec

from llm_gateway.api.views.shared import Listing, Time, moment

if TYPE_CHECKING:  # the client answers with these shapes, and needs no database for that
    from billing.audit import AuditRow


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


def audit_view(row: "AuditRow") -> AuditView:
    """An act."""
    return AuditView(
        audit_id=row.audit_id,
        actor=row.actor,
        action=row.action,
        target=row.target,
        detail=row.detail,
        created_at=moment(row.created_at),
    )
