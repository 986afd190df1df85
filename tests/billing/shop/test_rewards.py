"""Rewards: paid to the author once for each act, within caps of a UTC day, whoever asks and however often."""

import asyncio
import datetime as dt

import pytest

from billing.accounts import EntryConflictError
from billing.failpoints import hooks
from billing.lists import PageRequest
from billing.shop.fields import InvalidFieldsError
from billing.shop.rewards import (
    Capped,
    NewReward,
    NewRewardRule,
    Paid,
    RewardConflictError,
    RewardRule,
    RewardRuleChange,
    SourceDisabledError,
    SourceTakenError,
    UnknownRewardRuleError,
    UnknownSourceError,
    source_ref,
    utc_day,
)
from tests.support.money import Place, purchase
from tests.support.shop import ADMIN, CREDIT, Gone, Shop, die, end, many_shops, open_shop

MIDNIGHT = round(dt.datetime(2026, 12, 1, tzinfo=dt.UTC).timestamp() * 1000)


def like(post: str = "post-1", by: str = "bob", author: str = "ada") -> NewReward:
    return NewReward(
        source="forum_like",
        source_ref_id=source_ref(post, by),
        account=author,
        acting_user=by,
    )


async def paid(shop: Shop, new: NewReward) -> Paid:
    done = await shop.rewards.reward(new, actor=ADMIN)
    assert isinstance(done, Paid)
    return done


async def rule_of(shop: Shop, source: str = "forum_like") -> RewardRule:
    (rule,) = (await shop.rules.page(PageRequest(), source=source)).items
    return rule


async def caps(shop: Shop, count: int | None, amount: int | None = None) -> None:
    """Of forum_like."""
    change = RewardRuleChange(cap_per_user_day=count, cap_micro_credits_per_user_day=amount)
    await shop.rules.update("forum_like", change, actor=ADMIN)


# --- rules --------------------------------------------------------------------------------------


async def test_two_rules_ship(shop: Shop) -> None:
    rules = (await shop.rules.page(PageRequest())).items
    assert [(each.rule_id, each.amount, each.cap_per_user_day, each.status) for each in rules] == [
        ("forum_import", 5 * CREDIT, 10, "active"),
        ("forum_like", 1 * CREDIT, 20, "active"),
    ]
    assert {each.cap_micro_credits_per_user_day for each in rules} == {None}


GOOD = NewRewardRule(source="invited", name="Invited", amount=3)


async def test_a_rule_is_made_changed_and_found(shop: Shop) -> None:
    made = await shop.rules.create(GOOD, actor="eve")
    shop.now += 5
    changed = await shop.rules.update(
        made.rule_id, RewardRuleChange(amount=4, cap_per_user_day=2), actor="eve"
    )
    assert (changed.amount, changed.cap_per_user_day, changed.name) == (4, 2, "Invited")
    assert changed.updated_at == made.updated_at + 5
    without = await shop.rules.update(
        made.rule_id, RewardRuleChange(cap_per_user_day=None), actor="eve"
    )
    assert without.cap_per_user_day is None
    assert await shop.rules.get(made.rule_id) == without
    found = await shop.rules.page(PageRequest(), status="active", source="invited")
    assert found.items == (without,)
    acts = await shop.rows("SELECT actor, action, target FROM admin_audit ORDER BY id")
    assert acts == [
        ("eve", f"reward_rule.{verb}", made.rule_id) for verb in ("create", "update", "update")
    ]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", ""),
        ("source", "Forum"),
        ("source", "a-b"),
        ("source", "x" * 33),
        ("source", "charge"),
        ("source", "purchase"),
        ("source", "refund"),
        ("source", "adjustment"),
        ("source", "expiry"),
        ("source", "manual"),
        ("name", " "),
        ("name", "x" * 201),
        ("amount", 0),
        ("amount", -1),
        ("amount", 1.5),
        ("amount", 2**53),
        ("status", "off"),
        ("description", "x" * 2001),
        ("cap_per_user_day", 0),
        ("cap_per_user_day", -1),
        ("cap_micro_credits_per_user_day", 0),
    ],
)
async def test_a_bad_field_of_a_rule_is_named(shop: Shop, field: str, value: object) -> None:
    values: dict[str, object] = {"source": "invited", "name": "n", "amount": 1, field: value}
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.rules.create(NewRewardRule(**values), actor=ADMIN)  # type: ignore[arg-type]
    assert {problem.field for problem in raised.value.problems} == {field}
    assert (await shop.rules.page(PageRequest())).total == 2


async def test_a_source_has_one_active_rule(shop: Shop) -> None:
    with pytest.raises(SourceTakenError):
        await shop.rules.create(NewRewardRule(source="forum_like", name="n", amount=1), actor=ADMIN)
    spare = await shop.rules.create(
        NewRewardRule(source="forum_like", name="n", amount=7, status="inactive"), actor=ADMIN
    )
    with pytest.raises(SourceTakenError):
        await shop.rules.update(spare.rule_id, RewardRuleChange(status="active"), actor=ADMIN)
    await shop.rules.update("forum_like", RewardRuleChange(status="inactive"), actor=ADMIN)
    await shop.rules.update(spare.rule_id, RewardRuleChange(status="active"), actor=ADMIN)
    assert (await paid(shop, like())).reward.amount == 7
    with pytest.raises(UnknownRewardRuleError):
        await shop.rules.update("nothing", RewardRuleChange(amount=1), actor=ADMIN)
    with pytest.raises(UnknownRewardRuleError):
        await shop.rules.get("nothing")


# --- paying -------------------------------------------------------------------------------------


async def test_the_author_is_paid(shop: Shop) -> None:
    done = await paid(shop, like())
    assert not done.repeated
    columns = (
        "event_id, account, source, source_ref_id, direction, amount, source_label, metadata_json"
    )
    assert await shop.rows(f"SELECT {columns} FROM ledger_entries") == [
        (
            "reward:forum_like:post-1:bob", "ada", "forum_like", "post-1:bob", "income", CREDIT,
            "计划被点赞", '{"acting_user":"bob","rule_id":"forum_like"}',
        )
    ]  # fmt: skip
    account = await shop.account()
    assert (account.balance, account.total_rewarded) == (CREDIT, CREDIT)
    assert (await shop.account("bob")).created_at is None
    assert shop.told == ["ada"]
    acts = await shop.rows("SELECT actor, action, target FROM admin_audit")
    assert acts == [(ADMIN, "reward.pay", "reward:forum_like:post-1:bob")]


async def test_a_second_like_of_the_same_post_by_the_same_user_pays_nothing(shop: Shop) -> None:
    first = await paid(shop, like())
    shop.now += 86_400_000 * 3
    again = await paid(shop, like())
    assert again == Paid(reward=first.reward, repeated=True)
    assert (await shop.account()).balance == CREDIT


async def test_other_users_and_other_posts_are_other_likes(shop: Shop) -> None:
    """Two users, two posts, and an import: 1 + 1 + 1 + 5 credits."""
    for new in (like(), like(by="cid"), like("post-2")):
        assert not (await paid(shop, new)).repeated
    imported = NewReward(
        source="forum_import", source_ref_id="post-1:bob", account="ada", acting_user="bob"
    )
    assert not (await paid(shop, imported)).repeated
    assert (await shop.account()).balance == 8 * CREDIT


async def test_a_change_or_end_of_the_rule_changes_nothing_paid(shop: Shop) -> None:
    first = await paid(shop, like())
    await shop.rules.update(
        "forum_like", RewardRuleChange(amount=9, status="inactive"), actor=ADMIN
    )
    assert (await paid(shop, like())).reward == first.reward
    with pytest.raises(SourceDisabledError, match="forum_like"):
        await paid(shop, like("post-2"))
    with pytest.raises(UnknownSourceError, match="haunting"):
        await paid(shop, NewReward(source="haunting", source_ref_id="r", account="ada"))
    assert (await shop.account()).balance == CREDIT


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (NewReward(source="forum_like", source_ref_id="post-1:bob", account="eve",
                   acting_user="bob"), "account"),
        (NewReward(source="forum_like", source_ref_id="post-1:bob", account="ada",
                   acting_user="cid"), "acting_user"),
    ],
)  # fmt: skip
async def test_the_same_reference_with_other_content_is_a_conflict(
    shop: Shop, other: NewReward, field: str
) -> None:
    await paid(shop, like())
    with pytest.raises(RewardConflictError) as raised:
        await shop.rewards.reward(other, actor=ADMIN)
    assert raised.value.field == field
    assert (await shop.account()).balance == CREDIT
    assert (await shop.account("eve")).balance == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("source", ""),
        ("source", "A"),
        ("source_ref_id", ""),
        ("source_ref_id", "a b"),
        ("source_ref_id", "x" * 129),
        ("account", ""),
        ("account", "x" * 65),
        ("acting_user", "a b"),
    ],
)
async def test_a_bad_field_of_a_reward_is_named(shop: Shop, field: str, value: str) -> None:
    values = {"source": "forum_like", "source_ref_id": "r", "account": "ada", field: value}
    with pytest.raises(InvalidFieldsError) as raised:
        await shop.rewards.reward(NewReward(**values), actor=ADMIN)
    assert [problem.field for problem in raised.value.problems] == [field]
    assert await shop.rows("SELECT * FROM rewards") == []


# --- caps ---------------------------------------------------------------------------------------


def test_a_day_is_of_utc() -> None:
    assert utc_day(MIDNIGHT - 1) == 20261130
    assert utc_day(MIDNIGHT) == 20261201


async def test_a_cap_of_rewards_counts_per_author_and_utc_day(shop: Shop) -> None:
    await caps(shop, 2)
    shop.now = MIDNIGHT - 2
    for number in (1, 2):
        assert not (await paid(shop, like(f"post-{number}"))).repeated
    capped = await shop.rewards.reward(like("post-3"), actor=ADMIN)
    assert capped == Capped(cap="cap_per_user_day", limit=2, used=2, day=20261130)
    assert (await paid(shop, like("post-1"))).repeated  # paid before, no new one
    assert not (await paid(shop, like("post-9", author="zoe"))).repeated  # another author
    imported = NewReward(source="forum_import", source_ref_id="r", account="ada")
    assert not (await paid(shop, imported)).repeated  # another source
    assert (await shop.account()).balance == 7 * CREDIT  # 1 + 1 + 5
    shop.now = MIDNIGHT
    assert not (await paid(shop, like("post-3"))).repeated
    assert (await shop.account()).balance == 8 * CREDIT


async def test_what_is_capped_leaves_no_money_and_no_row(shop: Shop) -> None:
    await caps(shop, 1)
    await paid(shop, like("post-1"))
    assert isinstance(await shop.rewards.reward(like("post-2"), actor=ADMIN), Capped)
    assert await shop.entries() == [("reward:forum_like:post-1:bob", CREDIT)]
    assert await shop.rows("SELECT event_id FROM rewards") == [("reward:forum_like:post-1:bob",)]
    assert (await shop.account()).seq == 1


async def test_a_cap_of_credits_is_never_passed(shop: Shop) -> None:
    """2.5 credits a day at 1 credit each: two are paid, a third would make 3."""
    await caps(shop, None, 2_500_000)
    for number in (1, 2):
        await paid(shop, like(f"post-{number}"))
    capped = await shop.rewards.reward(like("post-3"), actor=ADMIN)
    assert capped == Capped(
        cap="cap_micro_credits_per_user_day", limit=2_500_000, used=2_000_000,
        day=utc_day(shop.now),
    )  # fmt: skip
    await caps(shop, None, 3_000_000)
    await paid(shop, like("post-3"))
    assert isinstance(await shop.rewards.reward(like("post-4"), actor=ADMIN), Capped)
    assert (await shop.account()).balance == 3 * CREDIT


async def test_caps_hold_for_many_at_once(place: Place) -> None:
    """40 likes by 10 processes under a cap of 7: seven are paid."""
    async with open_shop(place) as shop:
        await caps(shop, 7)
        async with many_shops(place, 10) as shops:
            answers = await asyncio.gather(
                *(
                    shops[number % 10].rewards.reward(like(f"post-{number}"), actor=ADMIN)
                    for number in range(40)
                )
            )
        assert sum(isinstance(answer, Paid) for answer in answers) == 7
        assert (await shop.account()).balance == 7 * CREDIT
        assert await shop.rows("SELECT COUNT(*) FROM ledger_entries") == [(7,)]


async def test_one_like_told_by_many_at_once_is_paid_once(place: Place) -> None:
    """Some say that it is another author's: whoever comes first is believed."""
    async with open_shop(place) as shop:
        async with many_shops(place, 10) as shops:
            answers = await asyncio.gather(
                *(each.rewards.reward(like(), actor=ADMIN) for each in shops),
                *(each.rewards.reward(like(author="zoe"), actor=ADMIN) for each in shops),
                return_exceptions=True,
            )
        done = [answer for answer in answers if isinstance(answer, Paid)]
        assert sum(not answer.repeated for answer in done) == 1
        refused = [answer for answer in answers if not isinstance(answer, Paid)]
        assert {type(answer) for answer in refused} == {RewardConflictError}
        assert (len(done), len(refused)) == (10, 10)
        balances = [(await shop.account(name)).balance for name in ("ada", "zoe")]
        assert sorted(balances) == [0, CREDIT]


# --- dying in between ---------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["reward_decided", "reward_posted"])
async def test_whoever_asks_again_finishes_what_broke_off(shop: Shop, point: str) -> None:
    await caps(shop, 1)
    hooks[point] = end
    try:
        with pytest.raises(Gone):
            await paid(shop, like())
    finally:
        hooks.clear()
    # It counts against the cap, posted or not.
    assert isinstance(await shop.rewards.reward(like("post-2"), actor=ADMIN), Capped)
    done = await paid(shop, like())
    assert done.repeated
    assert done.reward.posted_at == shop.now
    assert (await shop.account()).balance == CREDIT


@pytest.mark.parametrize("point", ["reward_decided", "reward_posted"])
async def test_a_killed_process_leaves_a_reward_to_be_resumed(place: Place, point: str) -> None:
    async with open_shop(place) as shop:
        await die(place, point, "reward", "post-1:bob")
        shop.now += 60_001
        assert await shop.wrong() == ["R8 reward:forum_like:post-1:bob"]
        assert await shop.rewards.resume() == 1
        assert await shop.rewards.resume() == 0
        assert (await shop.account()).balance == CREDIT
        assert await shop.wrong() == []


async def test_a_reward_that_the_ledger_refuses_counts_for_nothing(place: Place) -> None:
    async with open_shop(place, check=False) as shop:
        await caps(shop, 1)
        taken = "reward:forum_like:post-1:bob"
        await shop.hot.post([purchase(5, account="ada", event_id=taken)])
        with pytest.raises(EntryConflictError):
            await paid(shop, like())
        assert await shop.rows("SELECT * FROM rewards") == []
        assert not (await paid(shop, like("post-2"))).repeated
        assert await shop.wrong() == [f"R8 {taken}"]  # posted by no reward


# --- lists and R8 -------------------------------------------------------------------------------


async def test_pages(shop: Shop) -> None:
    for number in range(3):
        shop.now += 1
        await paid(shop, like(f"post-{number}"))
    await paid(shop, like("post-9", author="zoe"))
    page = await shop.rewards.page(PageRequest(page_size=2), account="ada", source="forum_like")
    assert [each.source_ref_id for each in page.items] == ["post-2:bob", "post-1:bob"]
    assert (page.total, page.has_more) == (3, True)
    day = utc_day(shop.now)
    assert (await shop.rewards.page(PageRequest(), day=day)).total == 4
    assert (await shop.rewards.page(PageRequest(), day=day + 1)).total == 0


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE rewards SET amount = amount + 1",
        "UPDATE rewards SET account = 'eve'",
        "UPDATE rewards SET source = 'other'",
        "DELETE FROM rewards",
    ],
)
async def test_r8_sees_what_is_wrong_with_rewards(place: Place, change: str) -> None:
    async with open_shop(place, check=False) as shop:
        await paid(shop, like())
        assert await shop.wrong() == []
        await shop.change(change)
        assert await shop.wrong() == ["R8 reward:forum_like:post-1:bob"]
