"""The command `llm-gateway`: each group of commands is a module, loaded when it is asked for."""

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import rich_click as click

from llm_gateway.cli.failure import CommandError

# Command -> module of this package and the name in it. In the order of the help page.
_COMMANDS: Final = {
    "serve": ("local", "serve"),
    "worker": ("local", "worker"),
    "init": ("local", "init"),
    "migrate": ("local", "migrate"),
    "doctor": ("local", "doctor"),
    "chat": ("chat", "chat"),
    "balance": ("store", "balance"),
    "transactions": ("store", "transactions"),
    "consumption": ("finance", "consumption"),
    "accounts": ("accounts", "accounts"),
    "keys": ("keys", "keys"),
    "admins": ("admins", "admins"),
    "products": ("products", "products"),
    "orders": ("orders", "orders"),
    "rewards": ("rewards", "rewards"),
    "usage": ("finance", "usage"),
    "statement": ("finance", "statement"),
    "outstanding": ("finance", "outstanding"),
    "corrections": ("finance", "corrections"),
    "prices": ("prices", "prices"),
    "holds": ("operations", "holds"),
    "outbox": ("operations", "outbox"),
    "quarantine": ("operations", "quarantine"),
    "guard": ("operations", "guard"),
    "reconcile": ("reconcile", "reconcile"),
    "audit": ("finance", "audit"),
}


class LazyGroup(click.RichGroup):
    """Imports a command's module on demand, and turns our failures into one line and a status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, name = _COMMANDS[cmd_name]
        command = getattr(importlib.import_module(f"{__name__}.{module}"), name)
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - click's own signature
        try:
            return super().invoke(ctx)
        except CommandError as error:
            click.echo(f"llm-gateway: {error}", err=True)
            ctx.exit(error.exit_status)


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="llm-gateway")
def cli() -> None:
    """A gateway that prepays: every call to a model is held, metered, and charged exactly."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and end the process with its status. No traceback ever reaches a user."""
    try:
        cli.main(args=None if arguments is None else list(arguments), prog_name="llm-gateway")
    except BrokenPipeError:
        # Whoever read our output has enough; what is left in the buffer must not fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:  # noqa: BLE001 - the last resort
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else "nowhere"
        click.echo(f"llm-gateway: internal error, {type(error).__name__} at {place}", err=True)
        sys.exit(70)  # EX_SOFTWARE of sysexits.h
