"""What DESIGN 12 promises of products, orders, transactions and rules is in the views, name by name."""

import msgspec
import pytest

from llm_gateway.api.views.orders import OrderView
from llm_gateway.api.views.prices import PriceRuleView
from llm_gateway.api.views.products import ProductView, SnapshotView
from llm_gateway.api.views.rewards import RewardRuleView
from llm_gateway.api.views.shared import Listing
from llm_gateway.api.views.transactions import TransactionView

# As the design has them; amounts of credit carry their unit.
PROMISED = {
    ProductView: (
        "product_id name description credit_amount_micro_credits price_cent original_price_cent"
        " price_text currency badge status sort_order"
    ),
    OrderView: (
        "order_id order_no status product_snapshot product_name quantity"
        " credit_amount_micro_credits amount_cent price_text currency payment_mode created_at"
        " paid_at credited_at"
    ),
    TransactionView: (
        "transaction_id event_id source source_label direction amount_micro_credits"
        " balance_after_micro_credits status description metadata_json created_at order_id"
    ),
    PriceRuleView: (
        "rule_id scene provider_name model_name input_price output_price cached_input_price"
        " reasoning_price credits_per_unit status priority description"
    ),
    RewardRuleView: "rule_id source name amount_micro_credits status description",
    Listing: "page page_size total has_more next_after",
}


@pytest.mark.parametrize("view", PROMISED, ids=lambda view: view.__name__)
def test_view_has_what_is_promised(view: type[msgspec.Struct]) -> None:
    assert set(PROMISED[view].split()) <= set(view.__struct_fields__)


def test_frozen_product_has_its_sku() -> None:
    snapshot = {field.name: field.type for field in msgspec.structs.fields(OrderView)}
    assert snapshot["product_snapshot"] is SnapshotView
    assert set(SnapshotView.__struct_fields__) == {*ProductView.__struct_fields__, "sku"}


@pytest.mark.parametrize("view", PROMISED, ids=lambda view: view.__name__)
def test_amounts_are_integers_and_no_number_is_a_float(view: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(view):
        assert "float" not in str(field.type)
        if "credit" in field.name and field.name not in ("credited_at", "credits_per_unit"):
            assert "_micro_credits" in field.name, field.name
            assert "int" in str(field.type)
