"""Pure: sums of what calls cost and would cost, by account, scene and model, in bounded memory."""

from typing import Final

import msgspec

from billing.kinds import LeftOut
from billing.rerating.calls import Call

GROUPS_SHOWN_MAX: Final = 20
MOVERS_SHOWN_MAX: Final = 10
NO_RULE_SHOWN_MAX: Final = 20
# Groups that are kept apart. Beyond, the least of them go into a common rest: half at a time.
GROUPS_KEPT_MAX: Final = 100_000

_Key = tuple[str, str, str, str]  # account, scene, provider, model


class Sums(msgspec.Struct, kw_only=True):
    """Calls and micro-credits. `before`, `after`: of the calls that could be re-rated alone."""

    calls: int = 0
    before: int = 0
    after: int = 0
    left_out_calls: int = 0
    left_out: int = 0  # what they were charged, and keep

    @property
    def difference(self) -> int:
        """What the calls would cost more (above 0) or less."""
        return self.after - self.before

    @property
    def weight(self) -> int:
        """By what a list has the dearest first."""
        return max(self.before, self.after) + self.left_out

    def add(self, other: "Sums") -> None:
        """Add another's calls to these."""
        self.calls += other.calls
        self.before += other.before
        self.after += other.after
        self.left_out_calls += other.left_out_calls
        self.left_out += other.left_out


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """The calls of one account, scene, provider and model; "" where that does not matter."""

    account: str = ""
    scene: str = ""
    provider: str = ""
    model: str = ""
    sums: Sums


class Groups(msgspec.Struct, frozen=True, kw_only=True):
    """The dearest groups, and the sum of all others."""

    items: tuple[Group, ...]
    rest: Sums


class Cause(msgspec.Struct, frozen=True, kw_only=True):
    """Calls that could not be re-rated, and what they were charged."""

    reason: LeftOut
    calls: int
    amount: int  # micro-credits


class Simulation(msgspec.Struct, frozen=True, kw_only=True):
    """All that came of it; every list has the dearest first.

    `cut`: there were more groups than can be kept apart. All sums are right even so, but a group that
    came up late may be missing in a list, and counted in its rest.
    """

    sums: Sums
    cut: bool
    left_out: tuple[Cause, ...]
    no_rule: Groups  # by scene, provider and model
    by_account: Groups
    by_scene: Groups
    by_model: Groups  # and provider
    movers: tuple[Group, ...]  # where account, scene and model cost so much more or less


class _Kept:
    """Sums by a key, and by no key what is too small to be kept apart."""

    def __init__(self, kept_max: int) -> None:
        self.by_key: dict[_Key, Sums] = {}
        self.rest = Sums()
        self.cut = False
        self._kept_max = kept_max

    def add(self, key: _Key, sums: Sums) -> None:
        kept = self.by_key.get(key)
        if kept is None:
            if len(self.by_key) >= self._kept_max:
                self.prune()
            kept = self.by_key[key] = Sums()
        kept.add(sums)

    def prune(self) -> None:
        """Give up the lesser half."""
        self.cut = True
        ranked = sorted(self.by_key.items(), key=_by_weight)
        for key, sums in ranked[self._kept_max // 2 :]:
            del self.by_key[key]
            self.rest.add(sums)

    def groups(self, shown_max: int) -> Groups:
        ranked = sorted(self.by_key.items(), key=_by_weight)
        rest = Sums()
        rest.add(self.rest)
        for _, sums in ranked[shown_max:]:
            rest.add(sums)
        return Groups(items=tuple(_group(key, sums) for key, sums in ranked[:shown_max]), rest=rest)


class Tally:
    """Takes call after call; `report` tells what they come to."""

    def __init__(self, *, kept_max: int = GROUPS_KEPT_MAX) -> None:
        self.calls = 0  # taken so far
        self._kept_max = kept_max
        self._fresh: dict[_Key, Sums] = {}
        self._all = Sums()
        self._movers = _Kept(kept_max)
        self._by_account = _Kept(kept_max)
        self._by_scene = _Kept(kept_max)
        self._by_model = _Kept(kept_max)
        self._no_rule = _Kept(kept_max)
        self._causes: dict[LeftOut, list[int]] = {}

    def add(self, call: Call, before: int, after: int | LeftOut) -> None:
        """A call that is charged `before`; `after`: what it would cost, or why nobody can say."""
        self.calls += 1
        key = (call.account, call.scene, call.provider, call.model)
        sums = self._fresh.get(key)
        if sums is None:
            if len(self._fresh) >= self._kept_max:
                self._fold()
            sums = self._fresh[key] = Sums()
        if isinstance(after, LeftOut):
            sums.left_out_calls += 1
            sums.left_out += before
            self._leave_out(key, before, after)
        else:
            sums.calls += 1
            sums.before += before
            sums.after += after

    def report(self) -> Simulation:
        """What all calls so far come to."""
        self._fold()
        movers = sorted(
            ((key, sums) for key, sums in self._movers.by_key.items() if sums.difference),
            key=lambda item: (-abs(item[1].difference), item[0]),
        )
        causes = [
            Cause(reason=reason, calls=calls, amount=amount)
            for reason, (calls, amount) in self._causes.items()
        ]
        return Simulation(
            sums=self._all,
            cut=any(kept.cut for kept in (self._movers, self._by_account, self._no_rule)),
            left_out=tuple(
                sorted(causes, key=lambda each: (-each.amount, -each.calls, each.reason))
            ),
            no_rule=self._no_rule.groups(NO_RULE_SHOWN_MAX),
            by_account=self._by_account.groups(GROUPS_SHOWN_MAX),
            by_scene=self._by_scene.groups(GROUPS_SHOWN_MAX),
            by_model=self._by_model.groups(GROUPS_SHOWN_MAX),
            movers=tuple(_group(key, sums) for key, sums in movers[:MOVERS_SHOWN_MAX]),
        )

    def _leave_out(self, key: _Key, before: int, reason: LeftOut) -> None:
        cause = self._causes.setdefault(reason, [0, 0])
        cause[0] += 1
        cause[1] += before
        if reason is LeftOut.NO_RULE:
            self._no_rule.add(("", *key[1:]), Sums(left_out_calls=1, left_out=before))

    def _fold(self) -> None:
        for key, sums in self._fresh.items():
            account, scene, provider, model = key
            self._all.add(sums)
            self._movers.add(key, sums)
            self._by_account.add((account, "", "", ""), sums)
            self._by_scene.add(("", scene, "", ""), sums)
            self._by_model.add(("", "", provider, model), sums)
        self._fresh.clear()


def _by_weight(item: tuple[_Key, Sums]) -> tuple[int, _Key]:
    key, sums = item
    return -sums.weight, key


def _group(key: _Key, sums: Sums) -> Group:
    account, scene, provider, model = key
    return Group(account=account, scene=scene, provider=provider, model=model, sums=sums)
