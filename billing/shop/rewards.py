"""Rewards: credit for what users do elsewhere, by rules; once for each act, within caps per user and UTC day.

A reward's row is written first, under a lock on the user who is paid, and counts against the caps
from then on; its entry follows. Whoever asks again, after a crash or at the same time, posts the
same entry.
"""

import datetime as dt
from collections.abc import Callable
from typing import Final, Literal

import msgspec
from sqlalchemy import ColumnElement, Select, delete, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from billing import ledger
from billing.accounts import (
    ACCOUNT_ID_RULE,
    EntryConflictError,
    EntryRefusedError,
    is_account_id,
)
from billing.audit import Act, Detail, note
from billing.db.hot import HotDatabase
from billing.db.pages import each_row, read_page
from billing.db.session import Database
from billing.db.tables import reward_rules, rewards
from billing.failpoints import reach
from billing.kinds import RuleStatus
from billing.lists import Page, PageRequest
from billing.shop.fields import Fields
from billing.shop.locks import lock_account
from billing.shop.postings import OnPosted, post_one
from billing.shop.rows import of_row

CapName = Literal["cap_per_user_day", "cap_micro_credits_per_user_day"]
STATUSES: Final = ("active", "inactive")

# Sources whose entries have another meaning, or a total of their own.
TAKEN_SOURCES: Final = frozenset(
    {"purchase", "charge", "refund", "expiry", "adjustment", "manual", "other"}
)


class NewRewardRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule to be made. Its source is the source of the entries; one active rule for each."""

    source: str
    name: str
    amount: int  # micro-credits for each reward, above 0
    status: RuleStatus = "active"
    description: str = ""
    cap_per_user_day: int | None = None  # rewards of this source; None: no cap
    cap_micro_credits_per_user_day: int | None = None


class RewardRuleChange(msgspec.Struct, frozen=True, kw_only=True):
    """What to change of a rule; what is unset stays. Rewards paid before stay as they are."""

    name: str | msgspec.UnsetType = msgspec.UNSET
    amount: int | msgspec.UnsetType = msgspec.UNSET
    status: RuleStatus | msgspec.UnsetType = msgspec.UNSET
    description: str | msgspec.UnsetType = msgspec.UNSET
    cap_per_user_day: int | msgspec.UnsetType | None = msgspec.UNSET
    cap_micro_credits_per_user_day: int | msgspec.UnsetType | None = msgspec.UNSET


class RewardRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule as it stands; amounts in micro-credits."""

    rule_id: str
    source: str
    name: str
    amount: int
    status: RuleStatus
    description: str
    cap_per_user_day: int | None
    cap_micro_credits_per_user_day: int | None
    created_at: int  # milliseconds since the epoch
    updated_at: int


class NewReward(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be rewarded. The same source and reference are the same reward, for ever."""

    source: str
    source_ref_id: str  # what was done by whom: see source_ref
    account: str  # who is paid: the author of the post
    acting_user: str = ""  # who liked or imported it


class Reward(msgspec.Struct, frozen=True, kw_only=True):
    """A reward that was paid, or is about to be; `posted_at` None: its entry is on its way."""

    event_id: str
    source: str
    source_ref_id: str
    account: str
    acting_user: str
    rule_id: str
    amount: int  # micro-credits
    day: int  # yyyymmdd, UTC: whose caps it counts against
    created_at: int
    posted_at: int | None


class Paid(msgspec.Struct, frozen=True, kw_only=True):
    """The reward was paid; `repeated`: before, and not again."""

    reward: Reward
    repeated: bool


class Capped(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing is paid: the user had all that the rule gives on a day. Asked again later, it may be."""

    cap: CapName
    limit: int  # the cap, in rewards or micro-credits
    used: int  # of it today
    day: int  # yyyymmdd, UTC


class UnknownRewardRuleError(Exception):
    """There is no rule by this id."""


class UnknownSourceError(Exception):
    """No rule has this source."""


class SourceDisabledError(Exception):
    """No rule of this source is active."""


class SourceTakenError(Exception):
    """Another active rule has this source."""


class RewardConflictError(Exception):
    """The source and reference stand for a reward of other content: which field differs, and how."""

    def __init__(self, field: str, existing: str, given: str) -> None:
        super().__init__(f"rewarded before with {field} {existing!r}, given {given!r}")
        self.field = field
        self.existing = existing
        self.given = given


def source_ref(post: str, acting_user: str) -> str:
    """The reference of what one user did to one post."""
    return f"{post}:{acting_user}"


def reward_event_id(source: str, source_ref_id: str) -> str:
    """The event id of a reward's entry."""
    return f"reward:{source}:{source_ref_id}"


def utc_day(at_ms: int) -> int:
    """The UTC day of a time in milliseconds since the epoch, as yyyymmdd."""
    moment = dt.datetime.fromtimestamp(at_ms // 1000, dt.UTC)
    return moment.year * 10_000 + moment.month * 100 + moment.day


class RewardRules:
    """All rules of one database. forum_like and forum_import come with the schema."""

    def __init__(
        self, database: Database, *, now_ms: Callable[[], int], new_id: Callable[[int], str]
    ) -> None:
        self._database = database
        self._now_ms = now_ms
        self._new_id = new_id

    async def create(self, new: NewRewardRule, *, actor: str) -> RewardRule:
        """Make a rule; raises InvalidFieldsError, SourceTakenError."""
        new = msgspec.structs.replace(new, name=new.name.strip(), source=new.source.strip())
        _check_rule(new)
        now_ms = self._now_ms()
        rule_id = self._new_id(now_ms)
        values = msgspec.structs.asdict(new)
        async with self._database.write(alone=True) as connection:
            if new.status == "active":
                await _refuse_taken(connection, new.source, rule_id)
            await connection.execute(
                insert(reward_rules).values(
                    rule_id=rule_id, created_at=now_ms, updated_at=now_ms, **values
                )
            )
            act = Act(actor=actor, action="reward_rule.create", target=rule_id, detail=values)
            await note(connection, act, now_ms)
            return await _read_rule(connection, rule_id)

    async def update(self, rule_id: str, change: RewardRuleChange, *, actor: str) -> RewardRule:
        """Change a rule; raises UnknownRewardRuleError, InvalidFieldsError, SourceTakenError."""
        changed = {
            name: value.strip() if isinstance(value, str) else value
            for name, value in msgspec.structs.asdict(change).items()
            if value is not msgspec.UNSET
        }
        now_ms = self._now_ms()
        async with self._database.write(alone=True) as connection:
            stored = msgspec.structs.asdict(await _read_rule(connection, rule_id))
            known = {name: stored[name] for name in NewRewardRule.__struct_fields__}
            after = NewRewardRule(**(known | changed))
            _check_rule(after)
            if after.status == "active":
                await _refuse_taken(connection, after.source, rule_id)
            if changed:
                mine = update(reward_rules).where(reward_rules.c.rule_id == rule_id)
                await connection.execute(mine.values(updated_at=now_ms, **changed))
            act = Act(actor=actor, action="reward_rule.update", target=rule_id, detail=changed)
            await note(connection, act, now_ms)
            return await _read_rule(connection, rule_id)

    async def get(self, rule_id: str) -> RewardRule:
        """A rule; raises UnknownRewardRuleError."""
        async with self._database.read() as connection:
            return await _read_rule(connection, rule_id)

    async def page(
        self, request: PageRequest, *, source: str = "", status: str = ""
    ) -> Page[RewardRule]:
        """Rules by source, active ones first. By page number only."""
        table = reward_rules
        wanted = {table.c.source: source, table.c.status: status}
        conditions = [column == value for column, value in wanted.items() if value]
        ordered = (
            select(table)
            .where(*conditions)
            .order_by(table.c.source, table.c.status, table.c.rule_id)
        )
        return await read_page(self._database, ordered, request, _rule)


class Rewards:
    """All rewards of one database."""

    def __init__(
        self,
        database: Database,
        hot: HotDatabase,
        *,
        now_ms: Callable[[], int],
        on_posted: OnPosted | None = None,
    ) -> None:
        """`on_posted` is told the accounts whose balance changed: a guard with balances of its own."""
        self._database = database
        self._hot = hot
        self._now_ms = now_ms
        self._on_posted = on_posted

    async def reward(self, new: NewReward, *, actor: str) -> Paid | Capped:
        """Pay a reward, once for each source and reference, within the caps of its rule.

        Raises InvalidFieldsError, UnknownSourceError, SourceDisabledError, RewardConflictError,
        EntryRefusedError, EntryConflictError (nothing is paid then), and DatabaseUnavailableError
        (then ask again).
        """
        _check_reward(new)
        async with self._database.write() as connection:
            decided = await self._decide(connection, new, actor)
        match decided:
            case Capped():
                return decided
            case Paid(reward=reward, repeated=repeated):
                return Paid(reward=await self._post(reward), repeated=repeated)

    async def page(
        self, request: PageRequest, *, account: str = "", source: str = "", day: int | None = None
    ) -> Page[Reward]:
        """Rewards, newest first. By page number only."""
        conditions: list[ColumnElement[bool]] = []
        if account:
            conditions.append(rewards.c.account == account)
        if source:
            conditions.append(rewards.c.source == source)
        if day is not None:
            conditions.append(rewards.c.day == day)
        wanted = (
            select(rewards)
            .where(*conditions)
            .order_by(rewards.c.created_at.desc(), rewards.c.event_id.desc())
        )
        return await read_page(self._database, wanted, request, _reward)

    async def resume(self) -> int:
        """Post rewards that were decided and, after a crash, not posted; how many."""
        waiting = select(rewards).where(rewards.c.posted_at.is_(None))
        posted = 0
        async for row in each_row(self._database, waiting, rewards.c.event_id):
            try:
                await self._post(_reward(row))
            except (EntryRefusedError, EntryConflictError):
                continue
            posted += 1
        return posted

    async def _decide(
        self, connection: AsyncConnection, new: NewReward, actor: str
    ) -> Paid | Capped:
        """Write the reward's row, unless there is one or a cap is reached."""
        # Of one user, one reward at a time: what is counted stays true until the row is there.
        await lock_account(connection, "reward", new.account)
        event_id = reward_event_id(new.source, new.source_ref_id)
        if (row := (await connection.execute(_by_id(event_id))).one_or_none()) is not None:
            return Paid(reward=_same(_reward(row), new), repeated=True)
        rule = await _active_rule(connection, new.source)
        now_ms = self._now_ms()
        day = utc_day(now_ms)
        if (capped := await _cap_reached(connection, rule, new.account, day)) is not None:
            return capped
        reward = Reward(
            event_id=event_id,
            source=new.source,
            source_ref_id=new.source_ref_id,
            account=new.account,
            acting_user=new.acting_user,
            rule_id=rule.rule_id,
            amount=rule.amount,
            day=day,
            created_at=now_ms,
            posted_at=None,
        )
        into = _insert(connection).values(**msgspec.structs.asdict(reward))
        if (await connection.execute(into.on_conflict_do_nothing())).rowcount != 1:
            # Paid to somebody else meanwhile, under another lock.
            row = (await connection.execute(_by_id(event_id))).one()
            return Paid(reward=_same(_reward(row), new), repeated=True)
        detail: Detail = {
            "account": reward.account,
            "amount_micro_credits": reward.amount,
            "rule_id": reward.rule_id,
        }
        act = Act(actor=actor, action="reward.pay", target=event_id, detail=detail)
        await note(connection, act, now_ms)
        return Paid(reward=reward, repeated=False)

    async def _post(self, reward: Reward) -> Reward:
        """Post the entry of a reward and note it; nothing to do if it is."""
        if reward.posted_at is not None:
            return reward
        reach("reward_decided")
        mine = rewards.c.event_id == reward.event_id, rewards.c.posted_at.is_(None)
        try:
            await post_one(self._hot, reward_entry(reward), self._on_posted)
        except (EntryRefusedError, EntryConflictError):
            # It never will be: it must not count against the caps.
            async with self._database.write() as connection:
                await connection.execute(delete(rewards).where(*mine))
            raise
        reach("reward_posted")
        posted_at = self._now_ms()
        async with self._database.write() as connection:
            await connection.execute(update(rewards).where(*mine).values(posted_at=posted_at))
            return _reward((await connection.execute(_by_id(reward.event_id))).one())


def reward_entry(reward: Reward) -> ledger.Entry:
    """The entry that pays a reward."""
    metadata = {"acting_user": reward.acting_user, "rule_id": reward.rule_id}
    return ledger.Entry(
        event_id=reward.event_id,
        account=reward.account,
        source=reward.source,
        direction=ledger.INCOME,
        amount=reward.amount,
        source_ref_id=reward.source_ref_id,
        metadata_json=msgspec.json.encode(metadata).decode(),
    )


def _check_rule(new: NewRewardRule) -> None:
    fields = Fields()
    fields.source("source", new.source)
    fields.check("source", "has a meaning of its own", ok=new.source not in TAKEN_SOURCES)
    fields.text("name", new.name, least=1)
    fields.whole("amount", new.amount, 1)
    fields.one_of("status", new.status, STATUSES)
    fields.prose("description", new.description)
    fields.limit("cap_per_user_day", new.cap_per_user_day)
    fields.limit("cap_micro_credits_per_user_day", new.cap_micro_credits_per_user_day)
    fields.done()


def _check_reward(new: NewReward) -> None:
    fields = Fields()
    fields.source("source", new.source)
    fields.reference("source_ref_id", new.source_ref_id)
    fields.check("account", f"must be {ACCOUNT_ID_RULE}", ok=is_account_id(new.account))
    if new.acting_user:
        fields.reference("acting_user", new.acting_user)
    fields.done()


async def _cap_reached(
    connection: AsyncConnection, rule: RewardRule, account: str, day: int
) -> Capped | None:
    """The cap that one more reward would pass."""
    today = select(func.count(), func.coalesce(func.sum(rewards.c.amount), 0)).where(
        rewards.c.account == account, rewards.c.source == rule.source, rewards.c.day == day
    )
    count, amount = (await connection.execute(today)).one()
    caps: tuple[tuple[CapName, int | None, int, int], ...] = (
        ("cap_per_user_day", rule.cap_per_user_day, int(count), 1),
        (
            "cap_micro_credits_per_user_day",
            rule.cap_micro_credits_per_user_day,
            int(amount),
            rule.amount,
        ),
    )
    for name, limit, used, more in caps:
        if limit is not None and used + more > limit:
            return Capped(cap=name, limit=limit, used=used, day=day)
    return None


async def _active_rule(connection: AsyncConnection, source: str) -> RewardRule:
    rows = (
        await connection.execute(select(reward_rules).where(reward_rules.c.source == source))
    ).all()
    rules = [_rule(row) for row in rows]
    if not rules:
        raise UnknownSourceError(f"no reward rule has the source {source}")
    for rule in rules:
        if rule.status == "active":
            return rule
    raise SourceDisabledError(f"no reward rule of the source {source} is active")


async def _refuse_taken(connection: AsyncConnection, source: str, rule_id: str) -> None:
    taken = select(reward_rules.c.rule_id).where(
        reward_rules.c.source == source,
        reward_rules.c.status == "active",
        reward_rules.c.rule_id != rule_id,
    )
    if await connection.scalar(taken) is not None:
        raise SourceTakenError(f"another active rule has the source {source}")


async def _read_rule(connection: AsyncConnection, rule_id: str) -> RewardRule:
    wanted = select(reward_rules).where(reward_rules.c.rule_id == rule_id)
    row = (await connection.execute(wanted)).one_or_none()
    if row is None:
        raise UnknownRewardRuleError
    return _rule(row)


def _same(reward: Reward, new: NewReward) -> Reward:
    for field in ("account", "acting_user"):
        was, given = getattr(reward, field), getattr(new, field)
        if was != given:
            raise RewardConflictError(field, was, given)
    return reward


def _by_id(event_id: str) -> Select[*tuple[object, ...]]:
    return select(rewards).where(rewards.c.event_id == event_id)


def _rule(row: Row[*tuple[object, ...]]) -> RewardRule:
    return of_row(row, RewardRule)


def _reward(row: Row[*tuple[object, ...]]) -> Reward:
    return of_row(row, Reward)


def _insert(connection: AsyncConnection) -> postgresql.Insert | sqlite.Insert:
    """An INSERT of this engine that can say ON CONFLICT."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(rewards)
    return sqlite.insert(rewards)
