"""Several processes of one gateway: forks them, tells them to stop, and replaces one that dies.

The parent never runs an event loop or a thread while it forks. Each child has a link to it, a pair
of sockets: the child says when it is ready, the parent when to stop; either end learns from the
link's end that the other is gone, however it went.
"""

import asyncio
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

READY: Final = b"r"
STOP: Final = b"s"
HURRY: Final = b"q"
RESTART_SECONDS_MIN: Final = 1.0
RESTART_SECONDS_MAX: Final = 30.0
STEADY_SECONDS: Final = 60.0  # a child that lived so long is replaced at once

_FAULT: Final = 70  # EX_SOFTWARE of sysexits.h


class Link:
    """The child's end of the link to its supervisor."""

    def __init__(self, end: socket.socket, number: int = 0) -> None:
        self._end = end
        self.number = number  # from 0; whoever takes a dead child's place has its number
        self.stop_asked = False  # a signal came before there was a loop to hear it

    def tell_ready(self) -> None:
        """Calls can be taken."""
        with suppress(OSError):
            self._end.send(READY)

    def listen(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        on_stop: Callable[[], None],
        on_hurry: Callable[[], None],
    ) -> None:
        """Be told from now on what the supervisor wants, or has said before; its end asks to stop."""

        def heard() -> None:
            try:
                said = self._end.recv(16)
            except BlockingIOError:
                return
            except OSError:
                # It was killed before it had read that this process is ready: the link is not ended
                # but broken (ECONNRESET), and no loop tells of that a second time.
                said = b""
            if HURRY in said:
                on_hurry()
            else:
                on_stop()
            if not said:
                loop.remove_reader(self._end)

        loop.add_reader(self._end, heard)


def _ask(link: Link, _number: int, _frame: object) -> None:
    link.stop_asked = True


class _Child:
    """A child process as the parent sees it."""

    def __init__(self, pid: int, end: socket.socket, number: int) -> None:
        self.pid = pid
        self.end = end
        self.number = number
        self.started = time.monotonic()
        self.ready = False

    def tell(self, word: bytes) -> None:
        with suppress(OSError):
            self.end.send(word)

    def reap(self) -> int:
        """Its exit status, negative for the signal that killed it."""
        self.end.close()
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)


class Supervisor:
    """Keeps `count` processes running `run_child`, until SIGINT or SIGTERM.

    `on_ready` is called once, when all are ready, `on_stop` when they are told to end.
    """

    def __init__(
        self,
        count: int,
        run_child: Callable[[Link], int],
        *,
        on_ready: Callable[[], None],
        on_stop: Callable[[], None],
    ) -> None:
        self._count = count
        self._run_child = run_child
        self._on_ready = on_ready
        self._on_stop = on_stop
        self._selector = selectors.DefaultSelector()
        self._children: dict[int, _Child] = {}
        self._restarts: list[tuple[float, int]] = []  # when to start which again (monotonic)
        self._pause = RESTART_SECONDS_MIN
        self._was_ready = False
        self._stops = 0  # how often it was asked to stop
        self._told = 0  # how many of them the children know of
        self._status = 0

    def run(self) -> int:
        """0 if all ended in order; what a child ended with that could not start; else 1."""
        woken, wake = socket.socketpair()
        for end in (woken, wake):
            end.setblocking(False)
        signal.set_wakeup_fd(wake.fileno())
        former = {
            asked: signal.signal(asked, self._heard) for asked in (signal.SIGINT, signal.SIGTERM)
        }
        self._selector.register(woken, selectors.EVENT_READ)
        try:
            for number in range(self._count):
                self._start(number)
            while self._children or self._restarts:
                self._turn(woken)
        finally:
            signal.set_wakeup_fd(-1)
            for asked, handler in former.items():
                signal.signal(asked, handler)
            self._selector.close()
            woken.close()
            wake.close()
        return self._status

    def _heard(self, _number: int, _frame: object) -> None:
        self._stops += 1

    def _turn(self, woken: socket.socket) -> None:
        for key, _ in self._selector.select(self._next_restart()):
            if key.fileobj is woken:
                with suppress(BlockingIOError):
                    woken.recv(64)
            else:
                self._listen_to(key.data)
        if self._stops > self._told:
            self._tell_all()
        self._start_again()

    def _tell_all(self) -> None:
        """The first request asks the children for an orderly end, any later one for a quick one."""
        first, self._told = self._told == 0, self._stops
        self._restarts.clear()
        for child in self._children.values():
            child.tell(STOP if self._stops == 1 else HURRY)
        if first:
            self._on_stop()

    # -- children ----------------------------------------------------------------------------

    def _start(self, number: int) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._be_child(ours, theirs, number)
        theirs.close()
        child = self._children[pid] = _Child(pid, ours, number)
        self._selector.register(ours, selectors.EVENT_READ, child)
        if self._stops:
            child.tell(STOP)

    def _be_child(self, ours: socket.socket, theirs: socket.socket, number: int) -> None:
        """Never returns. What is the parent's is closed: a link must end with the parent."""
        status = _FAULT
        try:
            signal.set_wakeup_fd(-1)
            link = Link(theirs, number)
            for asked in (signal.SIGINT, signal.SIGTERM):
                signal.signal(asked, partial(_ask, link))
            ours.close()
            for sibling in self._children.values():
                sibling.end.close()
            self._selector.close()
            status = self._run_child(link)
        except BaseException:  # noqa: BLE001 - a child must not go on as its parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def _listen_to(self, child: _Child) -> None:
        try:
            said = child.end.recv(16)
        except OSError:
            said = b""
        if not said:
            self._ended(child)
            return
        child.ready = True
        if not self._was_ready and all(each.ready for each in self._children.values()):
            self._was_ready = True
            self._on_ready()

    def _ended(self, child: _Child) -> None:
        self._selector.unregister(child.end)
        status = child.reap()
        del self._children[child.pid]
        if self._stops:
            if status:
                self._status = self._status or 1
            return
        if not self._was_ready:
            # The others would fare no better; the child has said why.
            self._status = status if status > 0 else 1
            self._stops = 1
            return
        self._replace(child, status)

    def _replace(self, child: _Child, status: int) -> None:
        now = time.monotonic()
        if now - child.started >= STEADY_SECONDS:
            self._pause = RESTART_SECONDS_MIN
            self._restarts.append((now, child.number))
        else:
            self._restarts.append((now + self._pause, child.number))
            self._pause = min(2 * self._pause, RESTART_SECONDS_MAX)
        how = f"was killed by signal {-status}" if status < 0 else f"ended with {status}"
        sys.stderr.write(f"llm-gateway: process {child.pid} {how}; another takes its place\n")
        sys.stderr.flush()

    def _next_restart(self) -> float | None:
        if not self._restarts:
            return None
        return max(0.0, min(self._restarts)[0] - time.monotonic())

    def _start_again(self) -> None:
        now = time.monotonic()
        due = [number for at, number in self._restarts if at <= now]
        self._restarts = [(at, number) for at, number in self._restarts if at > now]
        for number in due:
            self._start(number)
