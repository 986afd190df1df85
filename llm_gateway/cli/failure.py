"""How a command fails: one clear line on stderr and an exit status."""

from typing import Final

REFUSED: Final = 1  # the gateway said no, or something is wrong with what was checked
UNUSABLE: Final = 2  # nothing could be asked: no connection, no configuration, bad usage


class CommandError(Exception):
    """Ends a command with a message and an exit status."""

    def __init__(self, message: str, exit_status: int = UNUSABLE) -> None:
        super().__init__(message)
        self.exit_status = exit_status
