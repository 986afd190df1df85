"""Pure: what every start prints: address, key, a curl line that works, data, providers."""

import json
import shlex
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from llm_gateway.config import Config, ProviderConfig, ServerConfig
from llm_gateway.credentials import Credentials, credentials_path

ANY_ADDRESS: Final = ("0.0.0.0", "::", "")  # noqa: S104 - recognised, not listened on
COMMAND: Final = "llm-gateway"
_WIDTH: Final = 11


def url_of(host: str, port: int) -> str:
    """The address that a client on this machine uses for a server on `host`."""
    if host in ANY_ADDRESS:
        host = "::1" if host == "::" else "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def banner(
    config: Config, credentials: Credentials, *, command: str = COMMAND, notes: tuple[str, ...] = ()
) -> str:
    """The text; `notes` are further lines, such as that the price file differs from the book.

    `command` is how this program is called from the reader's shell.
    `credentials.url` is the address as it came to be, with the port that was really taken.
    """
    rows = [
        ("address", f"{credentials.url}/v1"),
        *_key_rows(config, credentials, command),
        *_place_rows(config, credentials),
        *_provider_rows(config),
        *(("note", note) for note in notes),
    ]
    lines = [f"llm-gateway {_version()}"]
    lines += [f"  {name:<{_WIDTH}}{text}" for name, text in rows]
    return "\n".join(lines)


def curl_line(url: str, key: str, model: str) -> str:
    """A streamed call, to be pasted into a shell."""
    body = json.dumps(
        {"model": model, "stream": True, "messages": [{"role": "user", "content": "Hello!"}]}
    )
    words = ["curl", "-N", f"{url}/v1/chat/completions", "-H", f"Authorization: Bearer {key}"]
    return shlex.join([*words, "-H", "Content-Type: application/json", "-d", body])


def model_to_try(config: Config) -> str:
    """A model that answers now; the offline one if it is there. "" if there is none."""
    on = {provider.name for provider in config.providers if provider.on}
    names = [
        model.name
        for model in config.models
        if model.name != "*" and any(target.provider in on for target in model.targets)
    ]
    return "echo" if "echo" in names else next(iter(names), "")


def _version() -> str:
    try:
        return version("llm-gateway")
    except PackageNotFoundError:
        return "(not installed, from its sources)"


def _key_rows(config: Config, credentials: Credentials, command: str) -> list[tuple[str, str]]:
    model = model_to_try(config)
    if not credentials.demo_key:
        hint = f"{shlex.quote(command)} accounts create NAME, then keys create --account NAME"
        return [("key", f"none yet: {hint}")]
    rows = [("key", f"{credentials.demo_key}   (account {credentials.demo_account})")]
    if model:
        rows.append(("try", curl_line(credentials.url, credentials.demo_key, model)))
        words = [command, "chat", "Hello!", "--model", model]
        if config.server.data_dir != ServerConfig().data_dir:
            words += ["--data-dir", config.server.data_dir]
        rows.append(("or", shlex.join(words)))
    return rows


def _place_rows(config: Config, credentials: Credentials) -> list[tuple[str, str]]:
    data_dir = Path(config.server.data_dir).resolve()
    rows = [
        ("admin", f"token in {credentials_path(data_dir)}"),
        ("data", str(data_dir)),
        (
            "settings",
            str(config.path) if config.path else "built-in (llm-gateway init writes them)",
        ),
    ]
    if credentials.admin_url and credentials.admin_url != credentials.url:
        rows[0] = ("admin", f"{credentials.admin_url}, {rows[0][1]}")
    return rows


def _provider_rows(config: Config) -> list[tuple[str, str]]:
    on = [_on_text(provider) for provider in config.providers if provider.on]
    rows = [("providers", f"on: {', '.join(on) or 'none'}")]
    rows += [
        ("", f"off: {provider.name} ({provider.off_because})")
        for provider in config.providers
        if not provider.on
    ]
    if not config.server.loopback:
        rows.append(("", "other machines can reach this address"))
    return rows


def _on_text(provider: ProviderConfig) -> str:
    return f"{provider.name} (offline)" if provider.kind == "echo" else provider.name
