"""gateway.toml as strict, frozen values: each setting, its default, what must hold between them."""

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from billing.settlement.broker_address import BrokerAddressError, check_address
from llm_gateway.config_defaults import MODELS, PROVIDERS, SCENES
from llm_gateway.config_reader import (
    ConfigError,
    KeyPath,
    Problem,
    Reader,
    Section,
    near_names,
)
from llm_gateway.secret import Secret
from pricing_rules.lines import Lines
from pricing_rules.money import parse_credits

__all__ = [
    "AuthConfig",
    "BrokerConfig",
    "Config",
    "ConfigError",
    "DatabaseConfig",
    "GuardConfig",
    "LedgerWorkerConfig",
    "ModelConfig",
    "Overrides",
    "PricingConfig",
    "Problem",
    "ProviderConfig",
    "SceneConfig",
    "Secret",
    "ServerConfig",
    "TargetConfig",
    "is_loopback",
    "load",
    "password_of",
    "shown_url",
    "split_address",
]

DAY_SECONDS: Final = 86_400

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")]
Port = Annotated[int, Meta(ge=0, le=65_535)]
Seconds = Annotated[float, Meta(gt=0, le=DAY_SECONDS)]
Tokens = Annotated[int, Meta(ge=1, le=10_000_000)]


class ServerConfig(Section, frozen=True, kw_only=True):
    """[server]: where the gateway listens and where its files live."""

    host: str = "127.0.0.1"
    port: Port = 8080  # 0: any free one
    processes: Annotated[int, Meta(ge=1, le=1_024)] = 1
    shutdown_seconds: Seconds = 30
    body_bytes_max: Annotated[int, Meta(ge=1_024, le=2**30)] = 20 * 1024 * 1024
    data_dir: str = ".data"
    admin_host: str = ""  # "host:port"; "" serves admin, metrics and schema on the main address

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the gateway."""
        return is_loopback(self.host)

    @property
    def admin_address(self) -> tuple[str, int] | None:
        """The second address as host and port, None if there is none."""
        return split_address(self.admin_host) if self.admin_host else None


class DatabaseConfig(Section, frozen=True, kw_only=True):
    """[database]: where the ledger lives. load() makes an empty url gateway.db in data_dir."""

    url: str = ""

    @property
    def is_sqlite(self) -> bool:
        """Whether this is a file of ours, and so one process at most."""
        return self.url.startswith("sqlite")

    @property
    def shown(self) -> str:
        """The address without its password, for people."""
        return shown_url(self.url)


class GuardConfig(Section, frozen=True, kw_only=True):
    """[guard]: how credit is held before a call is forwarded."""

    store: Literal["database", "redis"] = "database"
    redis_url: str = "redis://127.0.0.1:6379/0"
    on_unavailable: str = "reject"  # or "allow:<credits>"
    min_output_tokens: Tokens = 64
    call_seconds_max: Seconds = 3600

    @property
    def allow_micro_credits(self) -> int:
        """What an account may spend per process while the store is away; 0 rejects."""
        policy, _, amount = self.on_unavailable.partition(":")
        return parse_credits(amount) if policy == "allow" else 0


class BrokerConfig(Section, frozen=True, kw_only=True):
    """[broker]: what carries charge events to the ledger worker."""

    kind: Literal["database", "kafka", "redis"] = "database"
    url: str = ""


class LedgerWorkerConfig(Section, frozen=True, kw_only=True):
    """[ledger_worker]: whether `serve` settles charges itself, and where a worker of its own is watched."""

    embedded: bool = True
    metrics_host: str = ""  # "host:port" of health and metrics of `llm-gateway worker`; "" for none

    @property
    def metrics_address(self) -> tuple[str, int] | None:
        """What `metrics_host` says."""
        return split_address(self.metrics_host) if self.metrics_host else None


class AuthConfig(Section, frozen=True, kw_only=True):
    """[auth]: None = no token was given; one is made on the first start."""

    admin_token: Secret | None = None


class PaymentsConfig(Section, frozen=True, kw_only=True):
    """[payments]: how orders can be paid, beside an administrator's word."""

    mock: bool = False  # for development: whoever ordered says that it is paid


class PricingConfig(Section, frozen=True, kw_only=True):
    """[pricing]: the price book to start with, and what happens where nothing can be priced."""

    book: str = "prices.toml"
    unknown_model: Literal["reject", "fallback"] = "reject"
    fallback_rule: str = ""
    no_usage: Literal["estimate", "ceiling"] = "estimate"
    empty_answer: Literal["free", "charge"] = "free"


class SceneConfig(Section, frozen=True, kw_only=True):
    """[[scenes]]: a use that is priced and cut off in its own way."""

    name: Name
    on_exhausted: str = "cut"  # "cut", "finish", "grace:<credits>"
    on_client_gone: Literal["drain", "stop"] | None = None  # None: the provider decides

    @property
    def exhausted_policy(self) -> Literal["cut", "finish", "grace"]:
        """What happens to a stream whose hold cannot grow any more."""
        if self.on_exhausted == "finish":
            return "finish"
        return "grace" if self.on_exhausted.startswith("grace:") else "cut"

    @property
    def grace_micro_credits(self) -> int:
        """What a stream may cost beyond its hold under the policy "grace"."""
        policy, _, amount = self.on_exhausted.partition(":")
        return parse_credits(amount) if policy == "grace" else 0


class ProviderConfig(Section, frozen=True, kw_only=True):
    """[[providers]]: an upstream that speaks OpenAI's wire format, or the offline echo."""

    computed: ClassVar[frozenset[str]] = frozenset({"off_because"})

    name: Name
    kind: Literal["openai", "echo"] = "openai"
    base_url: str = ""
    api_key: Secret | None = None
    output_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    enforces_output_limit: bool = False
    on_client_gone: Literal["drain", "stop"] = "drain"
    connect_seconds: Seconds = 5
    first_byte_seconds: Seconds = 120
    idle_seconds: Seconds = 60
    connections_max: Annotated[int, Meta(ge=1, le=65_535)] = 512
    keep_alive_seconds: Seconds = 30
    tokens_per_second: Annotated[float, Meta(ge=0, le=1_000_000)] = (
        50  # echo: 0 = as fast as it goes
    )
    answer_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] = 60  # echo
    chunk_tokens: Annotated[int, Meta(ge=1, le=1_000_000)] = (
        1  # echo: tokens in one event of a stream
    )
    off_because: str = ""  # why load() left the provider off; "" = on

    @property
    def on(self) -> bool:
        """Whether calls may be sent to it."""
        return not self.off_because


class TargetConfig(Section, frozen=True, kw_only=True):
    """Where a model's calls go: a provider, and the model's name there."""

    provider: str
    model: str  # "*": the name the client asked for


class ModelConfig(Section, frozen=True, kw_only=True):
    """[[models]]: a name that clients ask for; "*" stands for every name without an entry."""

    name: str
    max_output_tokens: Tokens
    targets: tuple[TargetConfig, ...]
    image_tokens_max: Annotated[int, Meta(ge=0, le=10_000_000)] | None = (
        None  # None: an image in the request is refused (400)
    )
    audio_tokens_max: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None
    file_tokens_max: Annotated[int, Meta(ge=0, le=10_000_000)] | None = None


class Config(Section, frozen=True, kw_only=True):
    """All settings of one gateway; its attributes are the tables of gateway.toml."""

    computed: ClassVar[frozenset[str]] = frozenset({"path"})

    server: ServerConfig = ServerConfig()
    database: DatabaseConfig = DatabaseConfig()
    guard: GuardConfig = GuardConfig()
    broker: BrokerConfig = BrokerConfig()
    ledger_worker: LedgerWorkerConfig = LedgerWorkerConfig()
    auth: AuthConfig = AuthConfig()
    payments: PaymentsConfig = PaymentsConfig()
    pricing: PricingConfig = PricingConfig()
    scenes: tuple[SceneConfig, ...] = ()
    providers: tuple[ProviderConfig, ...] = ()
    models: tuple[ModelConfig, ...] = ()
    path: Path | None = None  # the file this came from


class Overrides(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says instead of the file."""

    host: str | None = None
    port: int | None = None
    processes: int | None = None
    data_dir: str | None = None


def load(
    path: Path | None = None,
    env: Mapping[str, str] | None = None,
    overrides: Overrides | None = None,
) -> Config:
    """The configuration of a file, or without one the defaults.

    A list that the file gives (scenes, providers, models) replaces the built-in one whole. Built-in
    models whose provider the file's list lacks are left out. `env` is where "env:NAME" secrets are
    looked up; None knows no variable. Raises ConfigError with all problems.
    """
    text, document = _parsed(path)
    reader = Reader(Lines(text), env or {}, path.parent if path else Path())
    given = _with_overrides(_built_in(document) | document, overrides or Overrides())
    inline = _inline_passwords(given)
    for table, key in _URLS:
        given = reader.referred(given, table, key)
    config = reader.section(Config, given, ())
    if config is not None:
        config = _completed(config, reader)
        _check(config, reader)
        for place in inline:
            reader.problem(place, 'holds a password; write "env:NAME" or "file:PATH" instead')
    if config is None or reader.problems:
        raise ConfigError(path, reader.problems)
    return msgspec.structs.replace(config, path=path)


def is_loopback(host: str) -> bool:
    """Whether an address to listen on can be reached from this machine only."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False


def shown_url(url: str) -> str:
    """An address as people may see it: without its password."""
    return _PASSWORD.sub(r"\1:***@", url)


def password_of(url: str) -> str:
    """The password in an address, "" if there is none."""
    found = _PASSWORD.search(url)
    return unquote(found[2]) if found else ""


def split_address(text: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[::1]:port"; raises ValueError for anything else."""
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or (":" in bare) != host.startswith("["):
        raise ValueError(_ADDRESS_EXPECTED)
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65_535:
        raise ValueError(_ADDRESS_EXPECTED)
    return bare, int(port)


_ADDRESS_EXPECTED: Final = 'expected "host:port", such as "127.0.0.1:8081"'
_SYNTAX_ERROR_PLACE: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)")
_MODEL_NAME: Final = re.compile(r"[!-~]{1,128}")
_BASE_URL_EXPECTED: Final = 'expected "https://host/path", without ? or #'
_SQLITE_PREFIX: Final = "sqlite+aiosqlite:///"
_POSTGRESQL_PREFIX: Final = "postgresql+asyncpg://"
_PASSWORD: Final = re.compile(r"(://[^:/?#@]*):([^@]+)@")  # what stands before an @ in an address
_URLS: Final = (("database", "url"), ("guard", "redis_url"), ("broker", "url"))


def _parsed(path: Path | None) -> tuple[str, dict[str, object]]:
    if path is None:
        return "", {}
    text = ""
    try:
        text = path.read_text("utf-8-sig")
        return text, tomllib.loads(text)
    except OSError as error:
        problem = Problem(0, "", f"cannot be read ({error.strerror})")
    except UnicodeDecodeError:
        problem = Problem(0, "", "is not UTF-8 text")
    except tomllib.TOMLDecodeError as error:
        place = _SYNTAX_ERROR_PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else text.count("\n") + 1
        message = _SYNTAX_ERROR_PLACE.sub("", str(error))
        problem = Problem(line, "", f"not TOML: {message[:1].lower()}{message[1:]}")
    raise ConfigError(path, [problem])


def _built_in(document: Mapping[str, object]) -> dict[str, object]:
    """The lists of a configuration that gives none, in the shape that TOML gives them."""
    models = MODELS
    given = document.get("providers")
    if isinstance(given, list):
        names = {item.get("name") for item in given if isinstance(item, dict)}
        models = [
            model for model in MODELS if all(t["provider"] in names for t in model["targets"])
        ]
    return {"scenes": SCENES, "providers": PROVIDERS, "models": models}


def _with_overrides(given: dict[str, object], overrides: Overrides) -> dict[str, object]:
    said = {k: v for k, v in msgspec.structs.asdict(overrides).items() if v is not None}
    server, auth = given.get("server", {}), given.get("auth", {})
    if isinstance(server, dict):  # if not, the reader says so
        given = given | {"server": server | said}
    if isinstance(auth, dict):
        given = given | {"auth": {"admin_token": "env:GATEWAY_ADMIN_TOKEN"} | auth}
    return given


def _completed(config: Config, reader: Reader) -> Config:
    """With the values that follow from others: the database's place, which providers are off."""
    database = config.database
    if not database.url:
        url = f"{_SQLITE_PREFIX}{Path(config.server.data_dir, 'gateway.db')}"
        database = msgspec.structs.replace(database, url=url)
    for prefix in ("postgres://", "postgresql://"):  # as every other client of PostgreSQL writes it
        if database.url.startswith(prefix):
            url = _POSTGRESQL_PREFIX + database.url.removeprefix(prefix)
            database = msgspec.structs.replace(database, url=url)
    offline = config.server.loopback and database.is_sqlite
    providers: list[ProviderConfig] = []
    for index, provider in enumerate(config.providers):
        reason = reader.unset.get(("providers", index, "api_key"), "")
        if provider.kind == "echo" and not offline:
            reason = "echo answers on a loopback address with SQLite only"
        base_url = provider.base_url.rstrip("/")
        providers.append(msgspec.structs.replace(provider, off_because=reason, base_url=base_url))
    return msgspec.structs.replace(config, database=database, providers=tuple(providers))


def _check(config: Config, reader: Reader) -> None:
    """Everything that must hold between settings."""
    _check_server(config.server, reader)
    _check_storage(config, reader)
    _check_worker(config, reader)
    _check_money(config, reader)
    for key in ("scenes", "providers", "models"):
        _check_names(key, [item.name for item in getattr(config, key)], reader)
    for index, provider in enumerate(config.providers):
        _check_provider(provider, ("providers", index), reader)
    known = [provider.name for provider in config.providers]
    for index, model in enumerate(config.models):
        _check_model(model, known, ("models", index), reader)


def _check_server(server: ServerConfig, reader: Reader) -> None:
    if not server.host or re.search(r"[\s/\[\]]", server.host):
        reader.problem(("server", "host"), 'expected an address or a name, such as "127.0.0.1"')
    if not server.data_dir:
        reader.problem(("server", "data_dir"), "expected a directory")
    if not server.admin_host:
        return
    try:
        address = split_address(server.admin_host)
    except ValueError as error:
        reader.problem(("server", "admin_host"), str(error))
        return
    if address == (server.host, server.port):
        message = "expected another address than that of host and port"
        reader.problem(("server", "admin_host"), message)


def _check_worker(config: Config, reader: Reader) -> None:
    """Its address must not be one of the gateway's, which may run on the same machine."""
    if not config.ledger_worker.metrics_host:
        return
    place = ("ledger_worker", "metrics_host")
    try:
        address = split_address(config.ledger_worker.metrics_host)
        taken = [(config.server.host, config.server.port)]
        if config.server.admin_host:
            taken.append(split_address(config.server.admin_host))
    except ValueError as error:
        reader.problem(place, str(error))
        return
    if address in taken:
        reader.problem(place, "expected another address than those of [server]")


def _check_storage(config: Config, reader: Reader) -> None:
    url, broker = config.database.url, config.broker
    file = url.removeprefix(_SQLITE_PREFIX)
    if url.startswith(_POSTGRESQL_PREFIX):
        if not _has_host_and_path(url):
            message = f'expected "{_POSTGRESQL_PREFIX}USER@HOST/DATABASE"'
            reader.problem(("database", "url"), message)
    elif not url.startswith(_SQLITE_PREFIX) or file in ("", ":memory:"):
        message = f'expected "{_SQLITE_PREFIX}PATH", a file, or "{_POSTGRESQL_PREFIX}..."'
        reader.problem(("database", "url"), message)
    if config.database.is_sqlite:
        _check_alone(config, reader)
    schemes = ("redis://", "rediss://", "unix://")
    if config.guard.store == "redis" and not config.guard.redis_url.startswith(schemes):
        reader.problem(("guard", "redis_url"), 'expected "redis://HOST:PORT/0" or "rediss://..."')
    if broker.kind != "database":
        try:
            check_address(broker.kind, broker.url)
        except BrokerAddressError as error:
            reader.problem(("broker", "url"), str(error))


def _check_alone(config: Config, reader: Reader) -> None:
    """A SQLite file is served by one process, which does everything."""
    if config.server.processes > 1:
        message = "more than one process needs PostgreSQL; [database] url names a SQLite file"
        reader.problem(("server", "processes"), message)
    if not config.ledger_worker.embedded:
        message = "a worker of its own needs PostgreSQL: with SQLite no charge would be settled"
        reader.problem(("ledger_worker", "embedded"), message)


def _has_host_and_path(url: str) -> bool:
    """Whether an address names a database; its host may stand behind the `?`, as a socket does."""
    try:
        parts = urlsplit(url)
        whole = parts.port != 0 and (bool(parts.hostname) or "host=" in parts.query)
    except ValueError:
        return False
    return whole and len(parts.path) > 1


def _inline_passwords(given: Mapping[str, object]) -> list[KeyPath]:
    """Where the file itself holds a password: a secret is named, never written out."""
    found: list[KeyPath] = []
    for table, key in _URLS:
        section = given.get(table)
        value = section.get(key) if isinstance(section, dict) else None
        if isinstance(value, str) and password_of(value):
            found.append((table, key))
    return found


def _check_money(config: Config, reader: Reader) -> None:
    pricing = config.pricing
    if pricing.unknown_model == "fallback" and not pricing.fallback_rule:
        message = 'unknown_model = "fallback" needs the id of the rule to fall back to'
        reader.problem(("pricing", "fallback_rule"), message)
    if not pricing.book:
        reader.problem(("pricing", "book"), "expected the file of a price book")
    if error := _policy_error(config.guard.on_unavailable, ("reject",), "allow"):
        reader.problem(("guard", "on_unavailable"), error)
    for index, scene in enumerate(config.scenes):
        if error := _policy_error(scene.on_exhausted, ("cut", "finish"), "grace"):
            reader.problem(("scenes", index, "on_exhausted"), error)


def _policy_error(text: str, plain: tuple[str, ...], paid: str) -> str:
    """What is wrong with a policy that is one of `plain` or "<paid>:<credits>"; "" if nothing."""
    if text in plain:
        return ""
    policy, colon, amount = text.partition(":")
    if policy != paid or not colon:
        choices = ", ".join(f'"{name}"' for name in plain)
        return f'expected {choices} or "{paid}:<credits>", got "{text}"'
    try:
        return "" if parse_credits(amount) > 0 else f"expected more than 0 credits after {paid}:"
    except ValueError as error:
        return f"the credits after {paid}: {error}"


def _check_names(key: str, names: list[str], reader: Reader) -> None:
    if not names:
        reader.problem((key,), f"expected at least one [[{key}]]")
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if first.setdefault(name, index) != index:
            reader.problem((key, index, "name"), f'"{name}" is there twice')


def _check_provider(provider: ProviderConfig, path: KeyPath, reader: Reader) -> None:
    if provider.kind == "echo":
        return
    if not provider.base_url:
        reader.problem(path, 'base_url is missing: expected "https://host/path"')
        return
    if error := _base_url_error(provider.base_url):
        reader.problem((*path, "base_url"), error)


def _base_url_error(url: str) -> str:
    """What is wrong with a base URL. Never repeats it: somebody may have put a key into it."""
    try:
        parts = urlsplit(url)
        whole = parts.port != 0 and bool(parts.hostname) and parts.scheme in ("http", "https")
    except ValueError:
        return _BASE_URL_EXPECTED
    if not whole or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url):
        return _BASE_URL_EXPECTED
    return "holds a user or password; use api_key instead" if parts.username is not None else ""


def _check_model(model: ModelConfig, known: list[str], path: KeyPath, reader: Reader) -> None:
    if not _is_model_name(model.name):
        reader.problem((*path, "name"), 'expected a model\'s name, or "*" alone for all others')
    if not model.targets:
        reader.problem((*path, "targets"), 'expected at least one { provider = "", model = "" }')
    for index, target in enumerate(model.targets):
        where = (*path, "targets", index)
        if target.provider not in known:
            message = f'no provider has the name "{target.provider}"; '
            reader.problem((*where, "provider"), message + near_names(target.provider, known))
        if not _is_model_name(target.model):
            message = 'expected the model\'s name there, or "*" for the name that was asked for'
            reader.problem((*where, "model"), message)


def _is_model_name(name: str) -> bool:
    return name == "*" or bool(_MODEL_NAME.fullmatch(name) and "*" not in name)
