"""Programs of the product as processes of their own, forked from one that has imported it all.

They differ from what a shell starts in one thing: the imports are done, which is most of a start.
tests/e2e/test_starts.py and test_cli_run.py start it the long way.
"""

import array
import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final

from tests.support.warm_server import Start

REPOSITORY: Final = Path(__file__).parents[2]
START_SECONDS: Final = 30.0


class WarmProcess:
    """Like subprocess.Popen, as far as the tests need it."""

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        script: Path | None = None,
        folder: Path,
        environment: Mapping[str, str],
        output: int,
        new_session: bool = False,
    ) -> None:
        """Runs `llm-gateway` with these arguments, or the script. Both its outputs go to `output`."""
        asked = Start(
            arguments=list(arguments),
            folder=str(folder),
            environment=dict(environment),
            new_session=new_session,
        )
        if script is not None:
            asked["script"] = str(script)
        self.returncode: int | None = None
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(_server(), [json.dumps(asked).encode()], [output, theirs.fileno()])
        pid = self._hear(START_SECONDS)
        assert pid is not None, "nothing was forked"
        self.pid = pid

    def poll(self) -> int | None:
        """The exit status if it has ended; negative: the signal that killed it."""
        if self.returncode is None:
            self._look(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._look(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked program", timeout or 0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended: its number may be somebody else's by then."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> None:
        self.returncode = self._hear(seconds)
        if self.returncode is not None:
            self._link.close()

    def _hear(self, seconds: float | None) -> int | None:
        """The next number that the server tells of this process."""
        if not select.select([self._link], [], [], seconds)[0]:
            return None
        told = array.array("i", self._link.recv(4))
        assert told, "the server that forks has ended"
        return told[0]

    def __del__(self) -> None:
        self._link.close()


@cache
def _server() -> socket.socket:
    """The connection to this test process's own server, started when first asked for."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.warm_server", str(theirs.fileno())],
            cwd=REPOSITORY,
            env={n: v for n, v in os.environ.items() if not n.startswith("COVERAGE_")},
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
        )

    def end() -> None:
        ours.close()
        server.wait(START_SECONDS)

    atexit.register(end)
    return ours
