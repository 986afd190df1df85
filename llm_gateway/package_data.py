"""Files that travel with the package: the commented gateway.toml, and the price book to begin with."""

from pathlib import Path
from typing import Final

SETTINGS_FILE: Final = "gateway.toml"
PRICES_FILE: Final = "prices.toml"

_PACKAGE: Final = Path(__file__).parent


def settings_text() -> str:
    """gateway.toml with every setting, what it does and its default."""
    return _shipped(SETTINGS_FILE).read_text("utf-8")


def price_book(name: str, *, beside: Path | None) -> str:
    """The text of the price book that the settings name; raises OSError.

    A relative name is looked for beside gateway.toml, or in the working directory if there is no
    such file. The book that we ship stands in where nobody put a prices.toml.
    """
    directory = beside.parent if beside else Path()
    path = directory / Path(name).expanduser()
    if name == PRICES_FILE and not path.exists():
        path = _shipped(PRICES_FILE)
    return path.read_text("utf-8-sig")


def _shipped(name: str) -> Path:
    """Inside the installed package, or at the root of a checkout."""
    installed = _PACKAGE / "_data" / name
    return installed if installed.exists() else _PACKAGE.parent / name
