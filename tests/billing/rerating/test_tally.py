"""Sums by account, scene and model: whatever is shown, everything is counted."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from billing.kinds import LeftOut
from billing.rerating.calls import Call
from billing.rerating.tally import Groups, Simulation, Sums, Tally
from pricing_rules.usage import Usage


def call(account: str = "ada", scene: str = "agent", model: str = "mini") -> Call:
    return Call(
        "e", 2, False, account, scene, "echo", model, 1, "r", "exact", "provider", 0, 0, Usage()
    )


def told(groups: Groups) -> list[tuple[str, int, int]]:
    return [
        (each.account or each.scene or each.model, each.sums.before, each.sums.after)
        for each in groups.items
    ]


def everything(groups: Groups) -> Sums:
    total = Sums()
    for each in (*(group.sums for group in groups.items), groups.rest):
        total.add(each)
    return total


def test_groups_have_the_dearest_first() -> None:
    tally = Tally()
    tally.add(call("ada"), 10, 20)
    tally.add(call("bob", "chat"), 30, 5)
    tally.add(call("bob", model="maxi"), 1, 1)
    tally.add(call("eve"), 40, LeftOut.ESTIMATE)
    found = tally.report()
    assert told(found.by_account) == [("eve", 0, 0), ("bob", 31, 6), ("ada", 10, 20)]
    assert told(found.by_scene) == [("agent", 11, 21), ("chat", 30, 5)]
    assert told(found.by_model) == [("mini", 40, 25), ("maxi", 1, 1)]
    assert [(g.account, g.scene, g.model, g.sums.difference) for g in found.movers] == [
        ("bob", "chat", "mini", -25), ("ada", "agent", "mini", 10)
    ]  # fmt: skip
    assert found.sums == Sums(calls=3, before=41, after=26, left_out_calls=1, left_out=40)
    assert tally.calls == 4


def test_what_no_rule_matches_is_told_apart_and_never_free() -> None:
    tally = Tally()
    for _ in range(2):
        tally.add(call(model="new"), 7, LeftOut.NO_RULE)
    tally.add(call(), 5, LeftOut.SERVICE_TIER)
    found = tally.report()
    assert [(each.reason, each.calls, each.amount) for each in found.left_out] == [
        (LeftOut.NO_RULE, 2, 14), (LeftOut.SERVICE_TIER, 1, 5)
    ]  # fmt: skip
    (group,) = found.no_rule.items
    assert (group.account, group.scene, group.model) == ("", "agent", "new")
    assert group.sums == Sums(left_out_calls=2, left_out=14)
    assert (found.sums.before, found.sums.after, found.sums.left_out) == (0, 0, 19)


def test_a_long_list_is_cut_and_summed() -> None:
    tally = Tally()
    for number in range(1, 31):
        tally.add(call(f"a{number:02}", model=f"m{number:02}"), number, 2 * number)
    found = tally.report()
    assert len(found.by_account.items) == 20
    assert found.by_account.items[0].account == "a30"
    # 1 to 10 are not shown.
    assert found.by_account.rest == Sums(calls=10, before=55, after=110)
    assert [group.account for group in found.movers] == [
        f"a{number}" for number in range(30, 20, -1)
    ]
    assert not found.cut


def test_a_report_survives_the_way_between_processes() -> None:
    tally = Tally()
    tally.add(call(), 1, 2)
    tally.add(call(), 1, LeftOut.NO_USAGE)
    found = tally.report()
    assert msgspec.json.decode(msgspec.json.encode(found), type=Simulation) == found


RESULTS = st.integers(0, 1_000) | st.sampled_from(LeftOut)
CALLS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(0, 3), st.integers(0, 9), st.integers(0, 1_000), RESULTS),
    max_size=200,
)  # fmt: skip


@given(CALLS, st.integers(2, 12))
def test_nothing_is_lost_however_little_is_kept(
    calls: list[tuple[int, int, int, int, int | LeftOut]], kept_max: int
) -> None:
    tally = Tally(kept_max=kept_max)
    wanted = Sums()
    for account, scene, model, before, after in calls:
        tally.add(call(f"a{account}", f"s{scene}", f"m{model}"), before, after)
        if isinstance(after, LeftOut):
            wanted.add(Sums(left_out_calls=1, left_out=before))
        else:
            wanted.add(Sums(calls=1, before=before, after=after))
    found = tally.report()
    assert found.sums == wanted
    for groups in (found.by_account, found.by_scene, found.by_model):
        assert everything(groups) == wanted
    assert sum(cause.calls for cause in found.left_out) == wanted.left_out_calls
    unmatched = everything(found.no_rule)
    assert unmatched.left_out_calls == sum(each[4] is LeftOut.NO_RULE for each in calls)
