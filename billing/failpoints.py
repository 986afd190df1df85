"""Named points of the path at which tests stop or kill the process; nothing in the product sets one."""

from collections.abc import Callable

hooks: dict[str, Callable[[], None]] = {}


def reach(name: str) -> None:
    """Do what a test hooked to this point; without a hook, nothing."""
    if hooks and (hook := hooks.get(name)):
        hook()
