"""Chains of events too particular for random runs to find, told step by step: each needs one protection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from billing.holds import Granted
from tests.model.protections import Protection
from tests.model.world import BOUGHT, Call, LateBeat, Process, State, ViolationError, World

if TYPE_CHECKING:
    from collections.abc import Callable

ACCOUNT: Final = "alice"
MOST: Final = BOUGHT * 3 // 4


def processes(world: World) -> tuple[Process, Process, Process]:
    """All three, connected."""
    for process in world.processes.values():
        world.register(process)
    first, second, third = world.processes.values()
    return first, second, third


def ask(world: World, process: Process, amount: int) -> Call | None:
    """Ask for a hold as a gateway does, loading the account if need be; then look at everything."""
    call = None
    for _ in range(2):
        if call is None:
            world.load_late()
            call = world.try_to_admit(process, ACCOUNT, amount, amount)
    world.check()
    return call


def admitted(world: World, process: Process, amount: int) -> Call:
    call = ask(world, process, amount)
    if call is None:
        raise AssertionError("the scenario starts with credit enough")
    return call


def all_register(world: World) -> None:
    for _ in range(2):
        for process in world.processes.values():
            world.register(process)


def spend_all(world: World, call: Call) -> None:
    """The call ends, and has cost what was held."""
    call.progress = call.held
    world.end(world.owner(call), call, State.FINISHED)


def settle_all(world: World) -> None:
    while world.ledger.outbox:
        world.settle()
    while world.applies:
        world.deliver()


def late_heartbeat_after_a_loss(world: World) -> None:
    """A heartbeat from before a call arrives after the guard was lost: it is no registration."""
    first, second, third = processes(world)
    early = admitted(world, first, 10)
    world.late_beats.append(LateBeat(first.name, first.epoch, ACCOUNT, world.beats(first)[ACCOUNT]))
    admitted(world, second, 10)
    admitted(world, first, MOST)
    world.restart()
    world.register(second)
    world.register(third)
    world.register(second)
    world.deliver_late()
    ask(world, third, MOST)
    assert early.state is State.RUNNING


def flushed_while_loading(world: World) -> None:
    """Registered holds vanish between the reading of the ledger and the writing of the account."""
    first, second, _ = processes(world)
    admitted(world, first, MOST)
    world.restart()
    all_register(world)
    world.look(second, ACCOUNT)
    world.begin_load(second, ACCOUNT)
    world.flush()
    world.finish_load(second, ACCOUNT)
    ask(world, second, MOST)


def flushed_before_the_mark(world: World) -> None:
    """Registered holds vanish after a process has seen the account, and before it leaves its mark."""
    first, second, third = processes(world)
    admitted(world, first, MOST)
    world.restart()
    all_register(world)
    world.look(second, ACCOUNT)
    world.flush()
    world.begin_load(second, ACCOUNT)
    ask(world, third, MOST)


def settled_while_loading(world: World) -> None:
    """A call is settled between the reading of the ledger and the writing of the account."""
    first, second, _ = processes(world)
    call = admitted(world, first, MOST)
    world.restart()
    all_register(world)
    world.look(second, ACCOUNT)
    world.begin_load(second, ACCOUNT)
    spend_all(world, call)
    settle_all(world)
    world.finish_load(second, ACCOUNT)
    ask(world, second, MOST)


def flushed_before_loading(world: World) -> None:
    """Holds were registered anew, nobody had asked for the account yet, and they vanish again."""
    first, second, _ = processes(world)
    admitted(world, first, MOST)
    world.restart()
    all_register(world)
    world.flush()
    ask(world, second, MOST)


def lost_after_an_estimate(world: World) -> None:
    """The guard is lost while a call, charged by estimate, still runs in a process taken for dead."""
    first, second, _ = processes(world)
    admitted(world, first, MOST)
    world.declare_dead(first)
    world.sweep()
    settle_all(world)
    world.restart()
    all_register(world)
    ask(world, second, MOST)


def owner_waits_for_settlement(world: World) -> None:
    """A call is over age, its estimate settled, and the owner's word still in the outbox."""
    first, second, _ = processes(world)
    call = admitted(world, first, MOST)
    world.declare_dead(first)
    world.sweep()
    settle_all(world)
    spend_all(world, call)
    world.now += 1000
    world.resend()
    while world.applies:
        world.deliver()
    ask(world, second, MOST)


def owner_waits_in_the_spool(world: World) -> None:
    """The same, and the database has just come back: the owner's word is still in its spool."""
    first, second, _ = processes(world)
    call = admitted(world, first, MOST)
    world.declare_dead(first)
    world.sweep()
    settle_all(world)
    world.outage()
    spend_all(world, call)
    world.now += 1000
    world.restore()
    world.resend()
    while world.applies:
        world.deliver()
    ask(world, second, MOST)


def lost_with_a_full_spool(world: World) -> None:
    """The guard is lost, the database is back, and a finished call is still in the spool."""
    first, second, _ = processes(world)
    call = admitted(world, first, MOST)
    world.outage()
    spend_all(world, call)
    world.restore()
    world.restart()
    all_register(world)
    ask(world, second, MOST)


def late_heartbeat_after_an_extension(world: World) -> None:
    """A heartbeat from before an extension arrives after it."""
    first, second, _ = processes(world)
    call = admitted(world, first, 10)
    world.late_beats.append(LateBeat(first.name, first.epoch, ACCOUNT, world.beats(first)[ACCOUNT]))
    extended = world.guard.extend(first.epoch, ACCOUNT, call.call_id, MOST)
    assert extended == Granted(MOST)
    call.held = MOST
    world.deliver_late()
    ask(world, second, MOST)


SCENARIOS: Final[dict[Protection, Callable[[World], None]]] = {
    Protection.FENCED_HEARTBEATS: late_heartbeat_after_a_loss,
    Protection.LOAD_TOKEN: flushed_while_loading,
    Protection.FIRST_MAKES_ROOM: flushed_before_the_mark,
    Protection.LOAD_NOT_OLDER: settled_while_loading,
    Protection.MARK_ON_REREGISTER: flushed_before_loading,
    Protection.REBUILD_READS_RESIDUALS: lost_after_an_estimate,
    Protection.RESIDUAL_WAITS_FOR_FINAL: owner_waits_for_settlement,
    Protection.RESIDUAL_WAITS_FOR_SPOOLS: owner_waits_in_the_spool,
    Protection.SPOOLED_CALLS_REREGISTER: lost_with_a_full_spool,
    Protection.LARGER_AMOUNT_WINS: late_heartbeat_after_an_extension,
}


def tell(protection: Protection, protections: frozenset[Protection]) -> str | None:
    """What a scenario comes to under these protections; None: nothing is violated."""
    world = World(0, protections=protections, faults=frozenset())
    try:
        SCENARIOS[protection](world)
        world.come_to_rest()
        world.check_end()
    except ViolationError as violated:
        return str(violated)
    return None
