"""<data_dir>/credentials: what the first start made and the command line needs; owner only."""

import os
import tempfile
import tomllib
from pathlib import Path
from typing import Final

import msgspec

FILE_NAME: Final = "credentials"


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses, admin token, demo account and its key; "" where there is none."""

    url: str = ""  # where calls go, without /v1
    admin_url: str = ""  # "" = the same
    admin_token: str = ""
    demo_account: str = ""
    demo_key: str = ""

    def __repr__(self) -> str:
        return f"Credentials(url={self.url!r}, demo_account={self.demo_account!r})"


class CredentialsError(Exception):
    """The file is there and cannot be used; the message says why, and repeats nothing out of it."""


def credentials_path(data_dir: Path) -> Path:
    """Where the file lives."""
    return data_dir / FILE_NAME


def read_credentials(data_dir: Path) -> Credentials | None:
    """What the file says, None if there is no file. Raises CredentialsError."""
    path = credentials_path(data_dir)
    try:
        return msgspec.convert(tomllib.loads(path.read_text("utf-8")), Credentials)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CredentialsError(f"{path} cannot be read ({error.strerror})") from error
    except (ValueError, msgspec.ValidationError):
        # Not chained: both kinds of message may show a piece of the file.
        raise CredentialsError(f"{path} is damaged; delete it, it is made anew at start") from None


def write_credentials(data_dir: Path, credentials: Credentials) -> Path:
    """Replace the file in one step; nobody but its owner can read it at any moment.

    The new file is complete and on disk before it takes the old one's place. Raises OSError.
    """
    path = credentials_path(data_dir)
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=data_dir, prefix=f".{FILE_NAME}-")  # made with 0600
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(_text(credentials))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def _text(credentials: Credentials) -> str:
    lines = ["# Made by `llm-gateway serve`; read by its other commands. Keep it to yourself."]
    for name, value in msgspec.structs.asdict(credentials).items():
        # JSON's string escapes are TOML's too, for all text without lone surrogates.
        lines.append(f"{name} = {msgspec.json.encode(value).decode()}")
    return "\n".join(lines) + "\n"
