"""A process that has imported the product, and forks itself for each program that a test starts.

Run by tests.support.warm alone: `python -m tests.support.warm_server FD`. A start takes no import
that way. It never has a loop or a second thread, so what it forks is as good as new.
"""

import array
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final, NotRequired, TypedDict

import coverage

PRODUCT: Final = ("pricing_rules", "billing", "llm_gateway")
LATE_IMPORTS: Final = (  # what the product imports when it needs it
    "aiosqlite",
    "alembic.command",
    "asyncpg",
    "redis.asyncio",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "tiktoken",
    "uvicorn.lifespan.off",
    "uvicorn.lifespan.on",
    "uvloop",
)
REQUEST_BYTES_MAX: Final = 100_000


class Start(TypedDict):
    """What to run: a script, or `llm-gateway` itself."""

    script: NotRequired[str]
    arguments: list[str]
    folder: str
    environment: dict[str, str]
    new_session: bool


def import_product() -> None:
    for package in map(importlib.import_module, PRODUCT):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    for name in LATE_IMPORTS:
        importlib.import_module(name)
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()  # or every fork would look through, and so copy, all of it


def serve(control: socket.socket) -> Start | None:
    """Forks until the asker ends (None); in each child, returns what the child is to run."""
    ended, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    links: dict[int, socket.socket] = {}
    while True:
        readable, _, _ = select.select([control.fileno(), ended], [], [])
        if ended in readable:
            os.read(ended, 1000)
            tell_ended(links)
        if control.fileno() not in readable:
            continue
        message, descriptors, _, _ = socket.recv_fds(control, REQUEST_BYTES_MAX, 2)
        if not message:
            return None
        output, link = descriptors[0], socket.socket(fileno=descriptors[1])
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (control, link, *links.values()):
                each.close()
            os.close(ended)
            os.close(wake)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os.close(output)
            asked: Start = json.loads(message)
            return asked
        os.close(output)
        link.send(array.array("i", [pid]).tobytes())
        links[pid] = link


def tell_ended(links: dict[int, socket.socket]) -> None:
    with suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            with links.pop(found[0]) as link, suppress(OSError):
                link.send(array.array("i", [os.waitstatus_to_exitcode(found[1])]).tobytes())


def run(asked: Start) -> None:
    if asked["new_session"]:
        os.setsid()
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    coverage.process_startup(force=True)
    script = asked.get("script")
    sys.argv = [script or "llm-gateway", *asked["arguments"]]
    if script is not None:
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
    else:
        from llm_gateway.cli import main

        main()


if __name__ == "__main__":
    import_product()
    with socket.socket(fileno=int(sys.argv[1])) as asker:
        to_run = serve(asker)
    if to_run is not None:
        run(to_run)
