"""Products: made and changed by admins with all mistakes told at once; users see what is active, in order."""

from pathlib import Path

import msgspec
import pytest

from billing.lists import PageRequest
from billing.shop.fields import InvalidFieldsError
from billing.shop.prices import price_text
from billing.shop.products import (
    NewProduct,
    ProductChange,
    Products,
    SkuTakenError,
    UnknownProductError,
)
from tests.support.shop import ADMIN, Shop

GOOD = NewProduct(
    sku="c-10", name="Ten credits", credit_amount=10_000_000, price_cent=990, currency="CNY"
)


@pytest.mark.parametrize(
    ("cents", "currency", "shown"),
    [
        (990, "CNY", "¥9.90"),
        (990, "USD", "$9.90"),
        (990, "EUR", "EUR 9.90"),
        (5, "USD", "$0.05"),
        (0, "CNY", "¥0.00"),
        (123_456_789, "GBP", "GBP 1234567.89"),
    ],
)
def test_price_text(cents: int, currency: str, shown: str) -> None:
    assert price_text(cents, currency) == shown


def test_no_price_is_negative() -> None:
    with pytest.raises(ValueError, match="not negative"):
        price_text(-1, "CNY")


async def test_a_product_is_as_it_was_made(shop: Shop) -> None:
    made = await shop.products.create(
        msgspec.structs.replace(GOOD, name="  Ten credits ", original_price_cent=1990), actor=ADMIN
    )
    assert made.name == "Ten credits"
    assert (made.price_text, made.original_price_text) == ("¥9.90", "¥19.90")
    assert (made.status, made.sort_order, made.badge) == ("active", 0, "")
    assert await shop.products.get(made.product_id) == made


@pytest.mark.parametrize("original", [0, -1])
async def test_an_original_price_of_nothing_reads_as_the_price(shop: Shop, original: int) -> None:
    made = await shop.products.create(
        msgspec.structs.replace(GOOD, original_price_cent=original), actor=ADMIN
    )
    assert made.original_price_cent == 990
    lower = await shop.products.update(made.product_id, ProductChange(price_cent=500), actor=ADMIN)
    assert lower.original_price_cent == 500


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sku", ""),
        ("sku", "a b"),
        ("sku", "-a"),
        ("sku", "x" * 65),
        ("name", ""),
        ("name", "  "),
        ("name", "x" * 201),
        ("name", "a\x00b"),
        ("name", "a\nb"),
        ("description", "x" * 2001),
        ("description", "\x1b[31m"),
        ("credit_amount", 0),
        ("credit_amount", -1),
        ("credit_amount", 2**53),
        ("credit_amount", 1.0),
        ("credit_amount", True),
        ("price_cent", -1),
        ("price_cent", 2**53),
        ("price_cent", 9.9),
        ("original_price_cent", -2),
        ("currency", "cny"),
        ("currency", "CNYY"),
        ("currency", "元"),
        ("badge", "x" * 201),
        ("sort_order", 1_000_001),
        ("sort_order", -1_000_001),
        ("status", "sold"),
    ],
)
async def test_a_bad_field_is_named(tmp_path: Path, field: str, value: object) -> None:
    bad = msgspec.structs.replace(GOOD, **{field: value})
    products = Products(None, now_ms=lambda: 0, new_id=lambda _: "")  # type: ignore[arg-type]
    with pytest.raises(InvalidFieldsError) as raised:
        await products.create(bad, actor=ADMIN)
    assert [problem.field for problem in raised.value.problems] == [field]


async def test_all_mistakes_are_told_at_once(shop: Shop) -> None:
    bad = NewProduct(sku="", name="", credit_amount=0, price_cent=-1, currency="")
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.products.create(bad, actor=ADMIN)
    assert [problem.field for problem in raised.value.problems] == [
        "sku", "name", "credit_amount", "price_cent", "currency",
    ]  # fmt: skip
    assert await shop.rows("SELECT * FROM products") == []


async def test_a_sku_is_there_once(shop: Shop) -> None:
    first = await shop.products.create(GOOD, actor=ADMIN)
    with pytest.raises(SkuTakenError):
        await shop.products.create(GOOD, actor=ADMIN)
    other = await shop.products.create(msgspec.structs.replace(GOOD, sku="c-20"), actor=ADMIN)
    with pytest.raises(SkuTakenError):
        await shop.products.update(other.product_id, ProductChange(sku="c-10"), actor=ADMIN)
    same = await shop.products.update(first.product_id, ProductChange(sku="c-10"), actor=ADMIN)
    assert same.sku == "c-10"


async def test_a_change_leaves_the_rest(shop: Shop) -> None:
    made = await shop.products.create(GOOD, actor=ADMIN)
    shop.now += 5
    changed = await shop.products.update(
        made.product_id, ProductChange(badge=" new ", status="inactive"), actor=ADMIN
    )
    assert changed == msgspec.structs.replace(
        made, badge="new", status="inactive", updated_at=made.updated_at + 5
    )


async def test_a_bad_change_changes_nothing(shop: Shop) -> None:
    made = await shop.products.create(GOOD, actor=ADMIN)
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.products.update(
            made.product_id, ProductChange(name="", price_cent=-5, badge="ok"), actor=ADMIN
        )
    assert [problem.field for problem in raised.value.problems] == ["name", "price_cent"]
    assert await shop.products.get(made.product_id) == made


async def test_unknown_products(shop: Shop) -> None:
    with pytest.raises(UnknownProductError):
        await shop.products.get("nothing")
    with pytest.raises(UnknownProductError):
        await shop.products.update("nothing", ProductChange(name="x"), actor=ADMIN)
    hidden = await shop.product(status="inactive")
    with pytest.raises(UnknownProductError):
        await shop.products.get(hidden.product_id, active_only=True)


async def test_users_see_active_products_in_their_order(shop: Shop) -> None:
    await shop.product(sku="third", sort_order=1, price_cent=100)
    await shop.product(sku="hidden", sort_order=0, status="inactive")
    await shop.product(sku="second", sort_order=0, price_cent=900)
    await shop.product(sku="first", sort_order=0, price_cent=500)
    offered = await shop.products.offered(PageRequest(page_size=2))
    assert [product.sku for product in offered.items] == ["first", "second"]
    assert (offered.total, offered.has_more) == (3, True)
    rest = await shop.products.offered(PageRequest(page=2, page_size=2))
    assert [product.sku for product in rest.items] == ["third"]
    assert not rest.has_more
    every = await shop.products.page(PageRequest())
    assert {product.sku for product in every.items} == {"first", "second", "third", "hidden"}
    hidden = await shop.products.page(PageRequest(), status="inactive")
    assert [product.sku for product in hidden.items] == ["hidden"]


async def test_each_act_is_in_the_audit_trail(shop: Shop) -> None:
    made = await shop.products.create(GOOD, actor="eve")
    await shop.products.update(made.product_id, ProductChange(price_cent=1), actor="bob")
    with pytest.raises(SkuTakenError):
        await shop.products.create(GOOD, actor="eve")
    acts = await shop.rows("SELECT actor, action, target FROM admin_audit ORDER BY id")
    assert acts == [
        ("eve", "product.create", made.product_id),
        ("bob", "product.update", made.product_id),
    ]
