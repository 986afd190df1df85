"""What makes two events the same: their money fields, and nothing else."""

import msgspec
import pytest

from billing.events import ChargeEvent, Revision, UsageQuality, payload_hash
from pricing_rules.usage import Usage
from tests.support.money import T0, charge

EVENT = charge("c1", 30).event


def changed(**changes: object) -> ChargeEvent:
    return msgspec.structs.replace(EVENT, **changes)


@pytest.mark.parametrize(
    "other",
    [
        changed(amount=31),
        changed(revision=Revision.ESTIMATE),
        changed(context=msgspec.structs.replace(EVENT.context, event_id="c2")),
        changed(context=msgspec.structs.replace(EVENT.context, account="bob")),
        changed(context=msgspec.structs.replace(EVENT.context, book=2)),
        changed(context=msgspec.structs.replace(EVENT.context, rule="another")),
    ],
)
def test_every_money_field_counts(other: ChargeEvent) -> None:
    assert payload_hash(other) != payload_hash(EVENT)


@pytest.mark.parametrize(
    "other",
    [
        changed(usage=Usage(input=1)),
        changed(quality=UsageQuality.ESTIMATED),
        changed(ceiling=1),
        changed(finished_at=T0),
        changed(context=msgspec.structs.replace(EVENT.context, run_id="r")),
    ],
)
def test_nothing_else_counts(other: ChargeEvent) -> None:
    assert payload_hash(other) == payload_hash(EVENT)


def test_it_is_a_sha256_in_hex() -> None:
    assert len(bytes.fromhex(payload_hash(EVENT))) == 32
