"""Secret: a value that is used and never shown; its repr names where it came from."""

from typing import final


@final
class Secret:
    """A key or token, and the reference ("env:NAME", "file:PATH") it was read by."""

    __slots__ = ("_value", "reference")

    def __init__(self, value: str, reference: str = "") -> None:
        self._value = value
        self.reference = reference

    def reveal(self) -> str:
        """The value itself; never to be logged or put into a message."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({self.reference or 'hidden'})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)
