"""Processes, a guard, a ledger and the faults between them, driven by one seed and checked after every step.

The protocol is that of billing.holds with a guard that lives in another server than the ledger.
Time is the number of steps. What the model leaves out: a process that is stopped for longer than a
call may take, a ledger that is restored from a backup, and clocks that disagree.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import TYPE_CHECKING, Final

from billing.holds import Granted, Refused
from tests.model.guard_model import Answer, Applied, Beat, Guard, Slot
from tests.model.ledger_model import ESTIMATE, FINAL, Event, Ledger, Recorded
from tests.model.protections import ALL, Protection

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNTS: Final = ("alice", "bob")
PROCESSES: Final = 3
NO_SERVER: Final = -1
BOUGHT: Final = 400
CALL_AGE_MAX: Final = 60  # steps; every process ends its own calls by then
RESIDUAL_MARGIN: Final = 20  # steps beyond it before what an estimate left is given up
REPLAY_MAX: Final = 10  # steps after the database is back in which every spool is replayed
QUIET_ROUNDS: Final = 60


class Fault(StrEnum):
    """What may go wrong."""

    CRASH = "a process dies"
    ZOMBIE = "a living process is declared dead, and goes on with its calls"
    FAILOVER = "the guard's replica takes over and lacks the last writes"
    RESTART = "the guard restarts empty"
    FLUSH = "the guard is emptied and keeps its identity"
    OUTAGE = "the database is away for a while"
    LOST_REPLY = "a reserve is given up by its caller and done even so, perhaps later"
    LOST_MESSAGE = "what settlement or a cancelling owner tells the guard gets lost"
    REDELIVERY = "an event comes to settlement again"
    POISON = "an event cannot be posted until somebody looks at it"
    CONFLICT = "a process says another amount of a call that it has finished"


# What happens how often, where not as usual; each seed has one of these moods. Rare things that only
# hurt together do not come together often enough in an even run.
MOODS: Final[tuple[dict[str, float], ...]] = (
    {},
    {"flush": 3, "failover": 2, "restart": 1, "load_late": 3, "heartbeat": 14},
    {"zombie": 3, "sweep": 12, "settle": 14, "extend": 10, "flush": 1.5, "failover": 1},
    {"send_beat": 8, "deliver_late": 5, "extend": 16, "failover": 2, "flush": 1.5},
    {"outage": 3, "replay": 0.5, "zombie": 2, "sweep": 8, "flush": 1.5, "failover": 1.5},
    {"zombie": 2, "sweep": 10, "settle": 2, "outage": 2, "finish": 4, "buy": 10},
)
LOSSES: Final = frozenset({Fault.FAILOVER, Fault.RESTART, Fault.FLUSH})


class State(StrEnum):
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"
    CRASHED = "crashed"


@dataclass(slots=True)
class Call:
    """An admitted call, as only a god sees it."""

    call_id: str
    account: str
    owner: str
    held: int  # what its owner may spend
    wanted: int
    started_at: int
    state: State = State.RUNNING
    progress: int = 0
    cost: int = 0
    told: int = 0  # the progress that the guard has surely heard of
    lost: bool = False  # the guard lost its hold, or part of it
    undead: bool = False  # admitted or extended by a process that had been declared dead
    excused: bool = False  # the hold was lost, then its owner, and nobody else knew of the call


@dataclass(frozen=True, slots=True)
class Judged:
    """A process has looked, and is about to leave its mark."""

    epoch: int
    is_first: bool  # to bring the account in during this epoch


@dataclass(slots=True)
class Load:
    """An account that a process is about to write into the guard."""

    epoch: int
    token: int
    read: Applied
    unsettled: list[tuple[str, int, str]]


@dataclass(slots=True)
class Process:
    name: str
    epoch: int
    server: int
    running: dict[str, Call] = field(default_factory=dict)
    spool: list[Event] = field(default_factory=list)
    judged: dict[str, Judged] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LateBeat:
    process: str
    epoch: int
    account: str
    beats: list[Beat]


@dataclass(frozen=True, slots=True)
class LateReserve:
    epoch: int
    account: str
    call_id: str
    amount: int
    process: str


class ViolationError(Exception):
    """What must hold does not; the first word names the kind."""


class World:
    """One run. Raises ViolationError at the first step after which something is wrong."""

    def __init__(
        self,
        seed: int,
        *,
        protections: frozenset[Protection] = ALL,
        faults: frozenset[Fault] = frozenset(Fault),
    ) -> None:
        self.random = random.Random(seed)
        self.on = protections
        self.faults = faults
        self.mood = MOODS[seed % len(MOODS)]
        self.now = 0
        self.guard = Guard(protections)
        self.ledger = Ledger(
            ACCOUNTS,
            age_max=CALL_AGE_MAX + RESIDUAL_MARGIN,
            replay_max=REPLAY_MAX,
            protections=protections,
        )
        self.replicas: list[dict[str, Slot]] = [{}]
        self.processes: dict[str, Process] = {}
        self.zombies: dict[str, Process] = {}
        self.corpses: dict[str, Process] = {}  # dead, and nobody knows yet
        self.spools: list[Event] = []  # of processes that are gone
        self.calls: dict[str, Call] = {}
        self.open_calls: dict[str, Call] = {}  # of which the ledger may still hear
        self.applies: list[Applied] = []
        self.late_beats: list[LateBeat] = []
        self.late_reserves: list[LateReserve] = []
        self.poisonous: set[str] = set()
        self.read_at_fence: dict[str, tuple[Applied, list[tuple[str, int, str]]]] = {}
        self.admitted = self.denied = self.unrecorded = 0
        self._ids = count(1)
        for account in ACCOUNTS:
            self.ledger.buy(account, BOUGHT)
        for _ in range(PROCESSES):
            self.spawn()

    def has(self, protection: Protection) -> bool:
        return protection in self.on

    def chance(self, fault: Fault, probability: float) -> bool:
        return fault in self.faults and self.random.random() < probability

    # --- processes -------------------------------------------------------------------------------

    def spawn(self) -> None:
        """A new process; it knows of no server yet, so it compares the first with the ledger's."""
        name = f"p{next(self._ids)}"
        self.processes[name] = Process(name, self.ledger.epoch, NO_SERVER)

    def any_process(self, *, zombies: bool = False) -> Process:
        pool = list(self.processes.values())
        if zombies:
            pool += self.zombies.values()
        return self.random.choice(pool)

    def fence(self) -> None:
        """The guard may have lost holds: a new epoch, in which everybody has to register first."""
        self.ledger.epoch += 1
        self.ledger.server = self.guard.server
        self.ledger.loading.clear()
        if self.has(Protection.GRACE):
            self.ledger.waiting = {*self.processes, *self.corpses}
        for account in ACCOUNTS:
            unsettled = self.ledger.unsettled(account, self.now)
            self.read_at_fence[account] = self.ledger.read(account), unsettled

    def connect(self, process: Process) -> bool:
        """Before anything else a client looks at whom it is connected to; False: it cannot tell."""
        if process.server == self.guard.server:
            return True
        if self.has(Protection.NEW_SERVER_IS_LOSS):
            if not self.ledger.up:
                return False
            if self.ledger.server != self.guard.server:
                self.fence()
            process.epoch = self.ledger.epoch
        process.server = self.guard.server
        return True

    def refresh(self, process: Process) -> None:
        if self.ledger.up:
            process.epoch = self.ledger.epoch

    def is_lost(self, account: str) -> bool:
        """A MISS is judged by whether the account was in the guard in this epoch before."""
        slot = self.guard.slots.get(account)
        is_there = slot is not None and slot.epoch == self.ledger.epoch
        marked = self.ledger.marks.get(account) == self.ledger.epoch
        return marked and not is_there and self.has(Protection.MISS_IS_JUDGED)

    def judge(self, process: Process, account: str) -> None:
        """Load the account, unless its absence means that the guard lost it."""
        ledger = self.ledger
        if not ledger.up:
            return
        if process.epoch != ledger.epoch:
            process.epoch = ledger.epoch
            return
        if self.is_lost(account):
            self.fence()
            process.epoch = ledger.epoch
            return
        if ledger.waiting or ledger.loading.get(account) not in {None, process.name}:
            return
        slot = self.guard.slots.get(account)
        if slot is not None and slot.epoch == ledger.epoch and slot.loaded:
            return
        self.look(process, account)
        if self.random.random() < 0.9:
            self.begin_load(process, account)
            if self.random.random() < 0.6:
                self.finish_load(process, account)

    def look(self, process: Process, account: str) -> None:
        """The account is here, or nobody brought it in before; the ledger is told that it is by now."""
        ledger = self.ledger
        is_first = ledger.marks.get(account) != ledger.epoch
        ledger.marks[account] = ledger.epoch
        ledger.loading[account] = process.name
        process.judged[account] = Judged(process.epoch, is_first)

    def begin_load(self, process: Process, account: str) -> None:
        """Leave a mark in the guard, then read the ledger. Others may come before, between and after."""
        judged, ledger = process.judged.pop(account, None), self.ledger
        if judged is None:
            return
        token = next(self._ids)
        careful = self.has(Protection.FIRST_MAKES_ROOM)
        made = self.guard.mark(
            judged.epoch, account, token, may_make=judged.is_first or not careful
        )
        if made is None or (made and not judged.is_first) or not ledger.up:
            self.end_load(process, account)
            # Without the rule it is known as well, but too late: whoever knows may die of it.
            if careful and made is None and ledger.up and judged.epoch == ledger.epoch:
                self.fence()
            return
        read, unsettled = ledger.read(account), ledger.unsettled(account, self.now)
        if not self.has(Protection.REBUILD_READS_LATE) and account in self.read_at_fence:
            read, unsettled = self.read_at_fence.pop(account)
        process.loads[account] = Load(judged.epoch, token, read, unsettled)

    def end_load(self, process: Process, account: str) -> None:
        if self.ledger.loading.get(account) == process.name:
            del self.ledger.loading[account]

    def finish_load(self, process: Process, account: str) -> None:
        load = process.loads.pop(account, None)
        if load is None:
            return
        self.end_load(process, account)
        if self.connect(process):
            self.guard.load(load.epoch, load.token, load.read, load.unsettled)

    def gone(self, process: Process) -> None:
        """A process is dead, or declared so: nobody waits for it any more."""
        self.ledger.waiting.discard(process.name)
        self.excuse()

    # --- what happens ----------------------------------------------------------------------------

    def admit(self) -> None:
        process = self.any_process(zombies=not self.has(Protection.DEAD_PROCESS_STOPS))
        account = self.random.choice(ACCOUNTS)
        wanted = self.random.randint(20, 160)
        self.try_to_admit(process, account, self.random.randint(1, wanted), wanted)

    def try_to_admit(
        self, process: Process, account: str, minimum: int, wanted: int
    ) -> Call | None:
        if not self.connect(process):
            self.denied += 1
            return None
        call_id = f"c{next(self._ids)}"
        if self.chance(Fault.LOST_REPLY, 0.1):
            self.give_up(process, account, call_id, wanted)
            return None
        answer = self.reserve(process, account, call_id, minimum, wanted)
        if answer is Answer.MISS:
            self.judge(process, account)
            answer = self.reserve(process, account, call_id, minimum, wanted)
        if answer is Answer.STALE:
            self.refresh(process)
        if not isinstance(answer, Granted):
            self.denied += 1
            return None
        if self.chance(Fault.LOST_REPLY, 0.2):  # the client's library asks again by itself
            again = self.reserve(process, account, call_id, minimum, wanted)
            if again != answer:
                raise ViolationError(f"REPEAT granted {answer}, then {again}")
        self.admitted += 1
        call = Call(call_id, account, process.name, answer.amount, wanted, self.now)
        call.undead = process.name in self.zombies
        self.calls[call_id] = self.open_calls[call_id] = call
        process.running[call_id] = call
        return call

    def reserve(
        self, process: Process, account: str, call_id: str, minimum: int, wanted: int
    ) -> Granted | Refused | Answer:
        return self.guard.reserve(process.epoch, account, call_id, minimum, wanted, process.name)

    def give_up(self, process: Process, account: str, call_id: str, amount: int) -> None:
        """No answer came: the call never runs, the owner cancels; the reserve may still arrive."""
        call = Call(call_id, account, process.name, 0, amount, self.now)
        self.calls[call_id] = call
        late = LateReserve(process.epoch, account, call_id, amount, process.name)
        if self.random.random() < 0.5:
            self.deliver_reserve(late)
        else:
            self.late_reserves.append(late)
        self.end(process, call, State.CANCELLED)

    def deliver_reserve(self, late: LateReserve) -> None:
        self.guard.reserve(late.epoch, late.account, late.call_id, 1, late.amount, late.process)

    def progress(self) -> None:
        call = self.any_running()
        if call is not None:
            call.progress = self.random.randint(call.progress, call.held)

    def any_running(self) -> Call | None:
        running = [c for p in self.living() for c in p.running.values()]
        return self.random.choice(running) if running else None

    def living(self) -> list[Process]:
        return [*self.processes.values(), *self.zombies.values()]

    def extend(self) -> None:
        process = self.any_process(zombies=not self.has(Protection.DEAD_PROCESS_STOPS))
        if not process.running or not self.connect(process):
            return
        call = self.random.choice(list(process.running.values()))
        total = call.held + self.random.randint(1, 60)
        answer = self.guard.extend(process.epoch, call.account, call.call_id, total)
        if isinstance(answer, Granted):
            call.held = total
            call.undead = process.name in self.zombies
        elif answer is Answer.STALE:
            self.refresh(process)

    def finish(self) -> None:
        call = self.any_running()
        if call is not None:
            self.end(self.owner(call), call, State.FINISHED)

    def cancel(self) -> None:
        call = self.any_running()
        if call is not None:
            self.end(self.owner(call), call, State.CANCELLED)

    def owner(self, call: Call) -> Process:
        return self.processes.get(call.owner) or self.zombies[call.owner]

    def end(self, process: Process, call: Call, state: State) -> None:
        """The owner's word: durable in the database, or in the spool while that is away."""
        process.running.pop(call.call_id, None)
        call.state = state
        if state is State.FINISHED:
            most = call.held if self.has(Protection.GRANT_LIMITS_COST) else call.wanted
            most = max(most, call.progress)
            call.cost = self.random.choice((self.random.randint(call.progress, most), most))
        event = self.event(call, FINAL, call.cost, cancelled=state is State.CANCELLED)
        if self.chance(Fault.POISON, 0.03):
            self.poisonous.add(call.call_id)
        if self.ledger.up:
            self.ledger.record(event)
        elif self.has(Protection.SPOOL):
            process.spool.append(event)
        if state is State.CANCELLED:
            self.open_calls.pop(call.call_id, None)
            if not self.chance(Fault.LOST_MESSAGE, 0.2):
                self.guard.cancel(call.account, call.call_id)
        elif not self.has(Protection.HOLD_UNTIL_SETTLED):
            self.guard.cancel(call.account, call.call_id)

    def event(self, call: Call, revision: int, amount: int, *, cancelled: bool = False) -> Event:
        return Event(
            call.call_id,
            call.account,
            call.owner,
            revision,
            amount,
            call.held,
            call.started_at,
            cancelled,
        )

    def say_otherwise(self) -> None:
        """A broken process repeats the end of a call with another amount."""
        finals = [e for e in self.ledger.usage.values() if e.revision == FINAL and not e.cancelled]
        if not finals or not self.ledger.up:
            return
        event = self.random.choice(finals[-10:])
        call = self.calls[event.event_id]
        if call.held < 1:
            return
        other = self.event(call, FINAL, (event.amount + 1) % (call.held + 1))
        answer = self.ledger.record(other)
        if other.amount != event.amount and answer is Recorded.SAME:
            raise ViolationError("CONFLICT taken for a repeat")

    def claw_back(self) -> None:
        """A debit that is no call: at most what can be held for it."""
        account, amount = self.random.choice(ACCOUNTS), self.random.randint(1, 80)
        if not self.has(Protection.DEBITS_TAKE_HOLDS):
            if self.ledger.up and self.ledger.balance[account] >= amount:
                self.applies.append(self.ledger.buy(account, -amount))
            return
        process = self.any_process()
        call = self.try_to_admit(process, account, 1, amount)
        if call is not None:
            call.progress = call.held
            self.end(process, call, State.FINISHED)

    def beats(self, process: Process) -> dict[str, list[Beat]]:
        """What a process has to say, by account."""
        found: dict[str, list[Beat]] = {}
        for call in process.running.values():
            beat = Beat(call.call_id, call.held, call.progress)
            found.setdefault(call.account, []).append(beat)
        if self.has(Protection.SPOOLED_CALLS_REREGISTER):
            for event in process.spool:
                if not event.cancelled:
                    beat = Beat(event.event_id, event.ceiling, event.amount)
                    found.setdefault(event.account, []).append(beat)
        return found

    def heartbeat(self) -> None:
        self.register(self.any_process())

    def register(self, process: Process) -> None:
        """A heartbeat that is answered; after a loss it is the registration that others wait for."""
        if not self.connect(process):
            return
        for account, beats in self.beats(process).items():
            answer = self.beat(process, account, beats)
            if answer is Answer.MISS and self.make_room(process, account):
                answer = self.beat(process, account, beats)
            if answer is Answer.STALE:
                self.refresh(process)
            if answer is not None:
                return
            self.heard(beats)
        if self.ledger.up:
            if process.epoch == self.ledger.epoch:
                self.ledger.waiting.discard(process.name)
            process.epoch = self.ledger.epoch

    def beat(self, process: Process, account: str, beats: list[Beat]) -> Answer | None:
        anew = self.has(Protection.REREGISTER)
        return self.guard.beat(process.epoch, account, process.name, beats, register=anew)

    def heard(self, beats: list[Beat]) -> None:
        for beat in beats:
            call = self.calls[beat.hold_id]
            call.told = max(call.told, beat.progress)
            if self.guard.amount(call.account, call.call_id) >= call.held:
                call.lost = False

    def make_room(self, process: Process, account: str) -> bool:
        """Holds come to an account that the guard does not have in this epoch."""
        if not self.ledger.up:
            return False
        if process.epoch != self.ledger.epoch or self.is_lost(account):
            if process.epoch == self.ledger.epoch:
                self.fence()
            process.epoch = self.ledger.epoch
            return False
        if self.has(Protection.MARK_ON_REREGISTER):
            self.ledger.marks[account] = self.ledger.epoch
        self.guard.mark(process.epoch, account, 0, may_make=True)
        return True

    def send_beat(self) -> None:
        """A heartbeat that stays on its way for a while."""
        process = self.any_process()
        for account, beats in self.beats(process).items():
            self.late_beats.append(LateBeat(process.name, process.epoch, account, beats))

    def deliver_late(self) -> None:
        if self.late_reserves and self.random.random() < 0.3:
            self.deliver_reserve(
                self.late_reserves.pop(self.random.randrange(len(self.late_reserves)))
            )
        if not self.late_beats:
            return
        late = self.late_beats.pop(self.random.randrange(len(self.late_beats)))
        epoch = late.epoch
        fenced = self.has(Protection.FENCED_HEARTBEATS)
        if not fenced and (slot := self.guard.slots.get(late.account)) is not None:
            epoch = slot.epoch
        answer = self.guard.beat(epoch, late.account, late.process, late.beats, register=True)
        if answer is None and not fenced and self.ledger.up:
            self.ledger.waiting.discard(late.process)

    # --- settlement ------------------------------------------------------------------------------

    def settle(self) -> None:
        if not self.ledger.up or not self.ledger.outbox:
            return
        rows = list(self.ledger.outbox.values())
        batch = [e for e in rows if self.random.random() < 0.5] or rows[:1]
        self.random.shuffle(batch)
        again = batch[:1] if self.chance(Fault.REDELIVERY, 0.3) else []
        self.applies += self.ledger.settle(batch, self.poisonous)
        for event in again:
            self.ledger.outbox.setdefault((event.event_id, event.revision), event)
            self.ledger.quarantine.pop((event.event_id, event.revision), None)
        for event in batch:
            self.close_if_settled(event.event_id)

    def close_if_settled(self, event_id: str) -> None:
        charged = self.ledger.charged.get(event_id)
        if charged is not None and charged.event.revision == FINAL:
            call = self.calls[event_id]
            if not call.excused and charged.amount == call.cost:
                self.open_calls.pop(event_id, None)

    def release_quarantine(self) -> None:
        if self.ledger.up and self.ledger.quarantine:
            key = self.random.choice(list(self.ledger.quarantine))
            self.poisonous.discard(key[0])
            self.ledger.outbox[key] = self.ledger.quarantine.pop(key)

    def deliver(self) -> None:
        if self.applies:
            applied = self.applies.pop(self.random.randrange(len(self.applies)))
            if not self.chance(Fault.LOST_MESSAGE, 0.15):
                self.guard.apply(applied)

    def resend(self) -> None:
        """Tell the guard again of holds that the ledger knows to be over, or to be smaller."""
        if not self.ledger.up or not self.has(Protection.RESEND_APPLY):
            return
        for account, slot in self.guard.slots.items():
            finals, estimates = [], []
            for hold_id in slot.holds:
                verdict = self.ledger.verdict(hold_id, self.now)
                if verdict is None:
                    finals.append(hold_id)
                elif verdict >= 0:
                    estimates.append((hold_id, verdict))
            if finals or estimates:
                self.applies.append(self.ledger.read(account, tuple(finals), tuple(estimates)))

    def reconcile(self) -> None:
        if self.ledger.up and self.has(Protection.RECONCILE):
            self.applies += [self.ledger.read(account) for account in self.guard.slots]

    def sweep(self) -> None:
        """Declare dead who is dead, and charge what they held at its last progress."""
        if not self.ledger.up:
            return
        for name in list(self.corpses):
            self.ledger.dead.add(name)
            self.gone(self.corpses.pop(name))
        for account, slot in self.guard.slots.items():
            for hold_id, hold in list(slot.holds.items()):
                if hold.process not in self.ledger.dead or hold_id not in self.calls:
                    continue
                if not self.has(Protection.ORPHANS_ARE_CHARGED):
                    slot.drop(hold_id)
                    continue
                started_at = self.calls[hold_id].started_at
                self.ledger.estimate(
                    Event(
                        hold_id,
                        account,
                        hold.process,
                        ESTIMATE,
                        hold.progress,
                        hold.amount,
                        started_at,
                    )
                )

    def buy(self) -> None:
        if self.ledger.up:
            amount = self.random.randint(20, 200)
            self.applies.append(self.ledger.buy(self.random.choice(ACCOUNTS), amount))

    def replay(self) -> None:
        """What was spooled goes into the database, that of dead processes too."""
        if not self.ledger.up:
            return
        for process in self.living():
            for event in process.spool:
                self.ledger.record(event)
            process.spool.clear()
        for event in self.spools:
            self.ledger.record(event)
        self.spools.clear()

    # --- faults ----------------------------------------------------------------------------------

    def crash(self) -> None:
        process = self.any_process()
        del self.processes[process.name]
        for call in process.running.values():
            call.cost = self.random.randint(call.progress, call.held)
            call.state = State.CRASHED
        self.spools += process.spool
        self.corpses[process.name] = process
        for account, name in list(self.ledger.loading.items()):
            if name == process.name:
                del self.ledger.loading[account]
        self.excuse()
        self.spawn()

    def zombie(self) -> None:
        if not self.ledger.up:
            return
        self.declare_dead(self.any_process())
        self.spawn()

    def declare_dead(self, process: Process) -> None:
        del self.processes[process.name]
        self.zombies[process.name] = process
        self.ledger.dead.add(process.name)
        self.gone(process)

    def replicate(self) -> None:
        self.replicas = [*self.replicas[-3:], self.guard.copy()]

    def failover(self) -> None:
        self.lose(self.random.choice(self.replicas))
        self.guard.server += 1

    def restart(self) -> None:
        self.lose({})
        self.guard.server += 1

    def flush(self) -> None:
        self.lose({})

    def lose(self, left: dict[str, Slot]) -> None:
        before = {
            c.call_id: self.guard.amount(c.account, c.call_id) for c in self.open_calls.values()
        }
        self.guard.slots = left
        self.replicas = [self.guard.copy()]
        for call_id, amount in before.items():
            call = self.open_calls[call_id]
            if self.guard.amount(call.account, call_id) < amount:
                call.lost = True
            call.told = min(call.told, self.guard.progress(call.account, call_id))
        self.excuse()

    def excuse(self) -> None:
        """Two faults at once: the hold is lost, its owner is gone, and nothing is written of it."""
        for call in self.open_calls.values():
            ownerless = call.owner not in self.processes and not call.undead
            if call.lost and ownerless and not self.has_evidence(call):
                call.excused = True

    def has_evidence(self, call: Call) -> bool:
        if (call.call_id, FINAL) in self.ledger.usage:
            return True
        estimate = self.ledger.usage.get((call.call_id, ESTIMATE))
        return estimate is not None and estimate.ceiling >= call.held

    def outage(self) -> None:
        self.ledger.up = False

    def restore(self) -> None:
        if not self.ledger.up:
            self.ledger.up = True
            self.ledger.up_since = self.now

    # --- what a god sees -------------------------------------------------------------------------

    def exposure(self, call: Call) -> int:
        """What the ledger may still be told to take for a call."""
        charged = self.ledger.charged.get(call.call_id)
        already = charged.amount if charged is not None else 0
        if call.excused:
            return -already  # its charge may pass the balance, and is not ours to prevent
        estimate = self.ledger.usage.get((call.call_id, ESTIMATE))
        worst = {
            State.RUNNING: call.held,
            State.FINISHED: call.cost,
            State.CANCELLED: 0,
            State.CRASHED: estimate.amount if estimate is not None else 0,
        }[call.state]
        return max(0, worst - already)

    def check(self) -> None:
        open_to = dict.fromkeys(ACCOUNTS, 0)
        for call in self.open_calls.values():
            open_to[call.account] += self.exposure(call)
        for account, exposed in open_to.items():
            if self.ledger.balance[account] < exposed:
                short = self.ledger.balance[account] - exposed
                raise ViolationError(f"OVERSPENT {account}: in the worst case {short}")
        for account, slot in self.guard.slots.items():
            if slot.held != sum(hold.amount for hold in slot.holds.values()):
                raise ViolationError(f"COUNTER of {account} is not the sum of its holds")

    def check_end(self) -> None:
        """After everything has come to rest."""
        posted: dict[str, int] = {}
        moved = dict.fromkeys(ACCOUNTS, 0)
        for event_id, account, amount in self.ledger.entries:
            posted[event_id] = posted.get(event_id, 0) - amount
            moved[account] += amount
        if moved != self.ledger.balance:
            raise ViolationError("LEDGER a balance is not the sum of its entries")
        for call in self.calls.values():
            self.check_charge(call, posted.get(call.call_id))
        for account, slot in self.guard.slots.items():
            if slot.holds:
                raise ViolationError(f"LEAK {len(slot.holds)} holds stay, of no running call")
            if slot.loaded and slot.balance != self.ledger.balance[account]:
                raise ViolationError(f"DRIFT {account}: guard {slot.balance}, ledger otherwise")
        self.check_open()

    def check_charge(self, call: Call, posted: int | None) -> None:
        match call.state:
            case State.FINISHED if posted != call.cost:
                raise ViolationError(f"CHARGE {posted} for a call that cost {call.cost}")
            case State.CANCELLED if posted not in {None, 0}:
                raise ViolationError(f"CHARGE {posted} for a cancelled call")
            case State.CRASHED if posted is None:
                self.unrecorded += 1
                if not call.excused:
                    raise ViolationError("UNRECORDED the hold of a crashed call left no charge")
            case State.CRASHED if not call.excused and not call.told <= (posted or 0) <= call.cost:
                raise ViolationError(f"CHARGE {posted} for a call that had told of {call.told}")
            case _:
                pass

    def check_open(self) -> None:
        """Whoever has credit can use it, and is told so soon."""
        *_, process = self.processes.values()
        for account in ACCOUNTS:
            wanted = max(0, self.ledger.balance[account])
            for _ in range(4):
                for each in self.processes.values():
                    self.register(each)
                self.load_late()
                if self.reserve(process, account, "last", wanted, wanted) is not Answer.MISS:
                    break
                self.judge(process, account)
            answer = self.reserve(process, account, "last", wanted, wanted)
            if self.ledger.balance[account] >= 0 and answer != Granted(wanted):
                raise ViolationError(f"STUCK {account} is not admitted: {answer}")

    # --- the run ---------------------------------------------------------------------------------

    def actions(self) -> dict[Callable[[], None], float]:
        """What may happen next, and how often it does."""
        common: dict[Callable[[], None], float] = {
            self.admit: 30,
            self.progress: 10,
            self.finish: 12,
            self.cancel: 3,
            self.extend: 5,
            self.heartbeat: 9,
            self.send_beat: 2,
            self.deliver_late: 4,
            self.settle: 10,
            self.deliver: 14,
            self.sweep: 3,
            self.buy: 4,
            self.claw_back: 1,
            self.replay: 3,
            self.resend: 2,
            self.reconcile: 1,
            self.replicate: 6,
            self.load_late: 8,
        }
        faulty: dict[Fault, tuple[Callable[[], None], float]] = {
            Fault.CRASH: (self.crash, 1.2),
            Fault.ZOMBIE: (self.zombie, 0.8),
            Fault.FAILOVER: (self.failover, 0.5),
            Fault.RESTART: (self.restart, 0.2),
            Fault.FLUSH: (self.flush, 0.5),
            Fault.OUTAGE: (self.outage, 0.8),
            Fault.POISON: (self.release_quarantine, 1),
            Fault.CONFLICT: (self.say_otherwise, 1),
        }
        common.update(faulty[fault] for fault in faulty if fault in self.faults)
        if Fault.OUTAGE in self.faults:
            common[self.restore] = 6
        return {a: self.mood.get(getattr(a, "__name__", ""), w) for a, w in common.items()}

    def load_late(self) -> None:
        for process in self.living():
            for account in list(process.judged):
                self.begin_load(process, account)
            for account in list(process.loads):
                self.finish_load(process, account)

    def tick(self) -> None:
        """Every process ends its own calls in time."""
        self.now += 1
        if self.now - self.ledger.up_since == REPLAY_MAX:
            self.replay()
        for process in self.living():
            for call in list(process.running.values()):
                if self.now - call.started_at >= CALL_AGE_MAX:
                    self.end(process, call, State.FINISHED)

    def run(self, steps: int) -> None:
        actions = self.actions()
        choices, weights = list(actions), list(actions.values())
        for step in range(steps):
            action = self.random.choices(choices, weights)[0]
            action()
            self.tick()
            try:
                self.check()
            except ViolationError as error:
                name = getattr(action, "__name__", "")
                raise ViolationError(f"{error} (step {step}, after {name})") from None
        self.come_to_rest()
        self.check_end()

    def come_to_rest(self) -> None:
        """No more faults and no more calls; all that is on its way arrives."""
        lossy = Fault.LOST_MESSAGE in self.faults
        self.faults = frozenset()
        self.restore()
        self.replay()
        self.poisonous.clear()
        for process in self.living():
            for call in list(process.running.values()):
                self.end(process, call, State.FINISHED)
        while self.ledger.outbox:
            self.settle()
        if lossy:
            self.applies.clear()
        for _ in range(QUIET_ROUNDS):
            self.now += 5
            self.load_late()
            for process in list(self.processes.values()):
                self.register(process)
            while self.late_beats or self.late_reserves:
                self.deliver_late()
            while self.ledger.quarantine:
                self.release_quarantine()
            self.sweep()
            self.replay()
            while self.ledger.outbox:
                self.settle()
            self.resend()
            self.reconcile()
            while self.applies:
                self.deliver()
            if self.now % 10 == 0:
                self.check()
