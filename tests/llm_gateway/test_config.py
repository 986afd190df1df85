"""gateway.toml: strict, complete, and every problem told with its line."""

import contextlib
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_gateway.config import (
    Config,
    ConfigError,
    Overrides,
    is_loopback,
    load,
    password_of,
    shown_url,
    split_address,
)
from llm_gateway.config_reader import Section, setting_names
from llm_gateway.package_data import price_book, settings_text
from llm_gateway.secret import Secret
from pricing_rules.book import parse_book
from pricing_rules.match import match

PROVIDER = '[[providers]]\nname = "p"\nbase_url = "https://h/v1"\n'
MODEL = (
    '[[models]]\nname = "m"\nmax_output_tokens = 10\ntargets = [{ provider = "p", model = "m" }]\n'
)

# What stands in the file, the line, and what the message says after "file:line: ".
BAD = [
    ("[server]\nprot = 1", 2, 'server.prot: unknown key; did you mean "port"?'),
    ("[servre]\nport = 1", 1, 'servre: unknown key; did you mean "server"?'),
    ("port = 1", 1, "port: unknown key; known here: auth, broker, database"),
    ('[server]\n\nport = "80"', 3, 'server.port: expected a whole number from 0 to 65535, got "80"'),
    ("[server]\nport = 70000", 2, "server.port: expected a whole number from 0 to 65535, got 70000"),
    ("[server]\nport = 80.0", 2, "server.port: expected a whole number from 0 to 65535, got 80.0"),
    ("[server]\nport = true", 2, "server.port: expected a whole number from 0 to 65535, got true"),
    ("server = 1", 1, "server: expected a table, got 1"),
    ("[[server]]\nport = 1", 1, "server: expected a table, got an array"),
    ("[server]\nhost = 1", 2, "server.host: expected a text in quotes, got 1"),
    ('[server]\nhost = ""', 2, "server.host: expected an address or a name"),
    ('[server]\ndata_dir = ""', 2, "server.data_dir: expected a directory"),
    ("[server]\nshutdown_seconds = 0", 2, "server.shutdown_seconds: expected a number above 0"),
    ("[server]\nshutdown_seconds = nan", 2, "server.shutdown_seconds: expected a number above 0"),
    ("[server]\nshutdown_seconds = inf", 2, "server.shutdown_seconds: expected a number above 0"),
    ("[server]\nprocesses = 2", 2, "server.processes: more than one process needs PostgreSQL"),
    ('[server]\nadmin_host = "localhost"', 2, 'server.admin_host: expected "host:port"'),
    ('[server]\nadmin_host = "127.0.0.1:8080"', 2, "server.admin_host: expected another address"),
    ('[database]\nurl = "postgresql+asyncpg://h"', 2, 'database.url: expected "postgresql+asyncpg'),
    ('[database]\nurl = "mysql://h/d"', 2, 'database.url: expected "sqlite+aiosqlite:///PATH"'),
    ('[database]\nurl = "postgresql://u:CANARY@h/d"', 2, "database.url: holds a password; write"),
    ('[database]\nurl = "env:NOT_THERE"', 2, "database.url: NOT_THERE is not set"),
    ('[database]\nurl = "env:A-B"', 2, 'database.url: expected "env:NAME" or "file:PATH"'),
    ('[database]\nurl = "sqlite:///x"', 2, 'database.url: expected "sqlite+aiosqlite:///PATH"'),
    ('[database]\nurl = "sqlite+aiosqlite:///:memory:"', 2, "database.url: expected"),
    ('[guard]\nstore = "redis"\nredis_url = "h:1"', 3, 'guard.redis_url: expected "redis://HOST'),
    ('[guard]\nredis_url = "redis://:CANARY@h/0"', 2, "guard.redis_url: holds a password; write"),
    ('[guard]\nstore = "disk"', 2, 'guard.store: expected "database" or "redis", got "disk"'),
    ('[guard]\non_unavailable = "allow"', 2, 'guard.on_unavailable: expected "reject" or "allow:<'),
    ('[guard]\non_unavailable = "allow:-1"', 2, "guard.on_unavailable: "),
    ('[guard]\non_unavailable = "allow:0"', 2, "guard.on_unavailable: expected more than 0 credits"),
    ('[broker]\nkind = "kafka"', 1, 'broker.url: expected "kafka://HOST:PORT" or "kafkas://'),
    ('[broker]\nkind = "kafka"\nurl = "redis://h:1"', 3, 'broker.url: expected "kafka://HOST:PORT'),
    ('[broker]\nkind = "redis"\nurl = "h:1"', 3, 'broker.url: expected "redis://HOST:PORT/0"'),
    ("[ledger_worker]\nembedded = false", 2, "ledger_worker.embedded: a worker of its own needs"),
    ('[ledger_worker]\nmetrics_host = "9464"', 2, "ledger_worker.metrics_host: expected"),
    (
        '[ledger_worker]\nmetrics_host = "127.0.0.1:8080"',
        2,
        "ledger_worker.metrics_host: expected another address than those of [server]",
    ),
    ('[pricing]\nunknown_model = "fallback"', 1, 'pricing.fallback_rule: unknown_model = "fallback"'),
    ('[pricing]\nbook = ""', 2, "pricing.book: expected the file of a price book"),
    ('[auth]\nadmin_token = "hunter2"', 2, 'auth.admin_token: expected "env:NAME" or "file:PATH"'),
    ("[auth]\nadmin_token = 5", 2, 'auth.admin_token: expected "env:NAME" or "file:PATH"'),
    ('[auth]\nadmin_token = "env:A-B"', 2, 'auth.admin_token: expected "env:NAME"'),
    ('[auth]\nadmin_token = "file:nowhere"', 2, "auth.admin_token: "),
    ('[[scenes]]\non_exhausted = "cut"', 1, "scenes[0]: name is missing: expected a name"),
    ('[[scenes]]\nname = "a b"', 2, "scenes[0].name: expected a name (letters, digits"),
    ('[[scenes]]\nname = "a\\n"', 2, "scenes[0].name: expected a name (letters, digits"),
    ('[[scenes]]\nname = "a"\non_exhausted = "grace:x"', 3, "scenes[0].on_exhausted: the credits"),
    ('[[scenes]]\nname = "a"\non_exhausted = "stop"', 3, 'scenes[0].on_exhausted: expected "cut", '),
    ('[[scenes]]\nname = "a"\n\n[[scenes]]\nname = "a"', 5, 'scenes[1].name: "a" is there twice'),
    ('[scenes]\nname = "a"', 1, "scenes: expected an array of tables, written [[scenes]]"),
    ("scenes = []", 1, "scenes: expected at least one [[scenes]]"),
    ('[[providers]]\nname = "p"', 1, "providers[0]: base_url is missing"),
    (PROVIDER.replace("https", "ftp"), 3, 'providers[0].base_url: expected "https://host/path"'),
    (PROVIDER.replace("h/v1", "u:pw@h"), 3, "providers[0].base_url: holds a user or password"),
    (PROVIDER.replace("h/v1", "h/?k=1"), 3, 'providers[0].base_url: expected "https://host/path"'),
    (PROVIDER + 'kind = "azure"', 4, 'providers[0].kind: expected "echo" or "openai", got "azure"'),
    (PROVIDER + 'off_because = "x"', 4, "providers[0].off_because: unknown key"),
    (PROVIDER + "connect_seconds = -1", 4, "providers[0].connect_seconds: expected a number above"),
    (PROVIDER + PROVIDER, 5, 'providers[1].name: "p" is there twice'),
    (PROVIDER + MODEL.replace("10", "0"), 6, "models[0].max_output_tokens: expected a whole number"),
    (PROVIDER + MODEL.replace('"p"', '"q"'), 7, "models[0].targets[0].provider: no provider has the"),
    (PROVIDER + MODEL.replace('"m"', '"m*"'), 5, "models[0].name: expected a model's name, or"),
    (PROVIDER + MODEL.replace(", model", ", modle"), 7, "models[0].targets[0].modle: unknown key"),
    (PROVIDER + '[[models]]\nname = "m"\nmax_output_tokens = 1\ntargets = []', 7, "models[0].targets"),
    ("[server\n", 1, "not TOML: "),
    ("[server]\nport = 1\nport = 2", 3, "not TOML: "),
    ('a = "', 1, "not TOML: "),
]  # fmt: skip


def problems_of(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "gateway.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path, {})
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(("text", "line", "message"), BAD)
def test_a_bad_setting_is_named_with_its_line(
    tmp_path: Path, text: str, line: int, message: str
) -> None:
    assert any(p.startswith(f"{line}: {message}") for p in problems_of(tmp_path, text)), (
        problems_of(tmp_path, text)
    )


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = '[server]\nprot = 1\nport = "x"\n[guard]\nstore = 5\n[[scenes]]\n'
    assert [problem.partition(": ")[0] for problem in problems_of(tmp_path, text)] == [
        "2", "3", "5", "6",
    ]  # fmt: skip


def test_what_contradicts_is_told_at_once_too(tmp_path: Path) -> None:
    text = '[server]\nprocesses = 2\n[ledger_worker]\nembedded = false\n[broker]\nkind = "kafka"\n'
    assert len(problems_of(tmp_path, text)) == 3


def test_a_file_that_is_not_there_is_one_line() -> None:
    with pytest.raises(ConfigError, match=r"^/no/where.toml: cannot be read \(No such file"):
        load(Path("/no/where.toml"), {})


def test_a_file_that_is_not_text_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"is not UTF-8 text$"):
        load(tmp_path / "gateway.toml", {})


@pytest.mark.parametrize(
    "text", ['[auth]\nadmin_token = "CANARY-key"', PROVIDER + 'api_key = "CANARY"']
)
def test_a_secret_in_the_file_is_refused_and_not_repeated(tmp_path: Path, text: str) -> None:
    problems = problems_of(tmp_path, text)
    assert problems
    assert "CANARY" not in "".join(problems)


# -- secrets ------------------------------------------------------------------------------------


def test_a_provider_without_its_variable_is_off_and_names_it() -> None:
    config = load(None, {"ANTHROPIC_API_KEY": "sk-ant-1", "DEEPSEEK_API_KEY": "  "})
    assert {p.name: p.off_because for p in config.providers} == {
        "openai": "OPENAI_API_KEY is not set",
        "anthropic": "",
        "google": "GEMINI_API_KEY is not set",
        "deepseek": "DEEPSEEK_API_KEY is not set",
        "qwen": "DASHSCOPE_API_KEY is not set",
        "moonshot": "MOONSHOT_API_KEY is not set",
        "echo": "",
    }
    (anthropic,) = (p for p in config.providers if p.name == "anthropic")
    assert anthropic.api_key == Secret("sk-ant-1")
    assert anthropic.api_key is not None
    assert anthropic.api_key.reveal() == "sk-ant-1"


def test_no_repr_of_the_configuration_shows_a_secret() -> None:
    config = load(None, {"OPENAI_API_KEY": "CANARY", "GATEWAY_ADMIN_TOKEN": "CANARY"})
    assert "CANARY" not in repr(config)
    assert "Secret(env:OPENAI_API_KEY)" in repr(config)


def test_a_secret_comes_out_of_a_file_beside_the_settings(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc\n")
    (tmp_path / "gateway.toml").write_text('[auth]\nadmin_token = "file:token"')
    token = load(tmp_path / "gateway.toml", {}).auth.admin_token
    assert token is not None
    assert token.reveal() == "abc"


@pytest.mark.parametrize("value", ["a b", "a\nb", "schlüssel"])
def test_a_secret_that_cannot_be_a_header_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="holds a space or a character beyond ASCII") as caught:
        load(None, {"OPENAI_API_KEY": value})
    assert value not in str(caught.value)


def test_an_auth_table_keeps_the_tokens_default(tmp_path: Path) -> None:
    (tmp_path / "gateway.toml").write_text("[auth]\n")
    token = load(tmp_path / "gateway.toml", {"GATEWAY_ADMIN_TOKEN": "t"}).auth.admin_token
    assert token == Secret("t")


# -- defaults -----------------------------------------------------------------------------------


def test_the_shipped_file_is_exactly_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(settings_text(), "utf-8")
    assert msgspec.structs.replace(load(path, {}), path=None) == load(None, {})


def _sections(kind: type[Section]) -> list[type[Section]]:
    found = [kind]
    for field in msgspec.structs.fields(kind):
        for inner in (field.type, *getattr(field.type, "__args__", ())):
            if isinstance(inner, type) and issubclass(inner, Section):
                found += _sections(inner)
    return found


def test_the_shipped_file_has_every_setting() -> None:
    text = settings_text()
    for kind in _sections(Config):
        for name in setting_names(kind):
            pattern = rf"(?m)^(# )?{name} = |^\[+{name}\]+$|[{{,] {name} = "
            assert re.search(pattern, text), f"{kind.__name__}.{name}"


def test_every_section_is_walked() -> None:
    names = {kind.__name__ for kind in _sections(Config)}
    assert {"ServerConfig", "ProviderConfig", "ModelConfig", "TargetConfig"} <= names


def test_every_built_in_model_has_a_price() -> None:
    book = parse_book(price_book("prices.toml", beside=None))
    for scene in ("default", "chat", "agent"):
        for model in load(None, {}).models:
            for target in model.targets:
                assert match(book, scene, target.provider, target.model), model.name


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "gateway.example"])
def test_echo_is_off_where_other_machines_can_call(host: str) -> None:
    config = load(None, {}, Overrides(host=host))
    assert [p.name for p in config.providers if p.on] == []
    assert not config.server.loopback


def test_the_command_line_wins_and_moves_the_database() -> None:
    config = load(None, {}, Overrides(host="::1", port=0, data_dir="/x"))
    assert (config.server.host, config.server.port) == ("::1", 0)
    assert config.database.url == "sqlite+aiosqlite:////x/gateway.db"


def test_a_list_in_the_file_replaces_the_built_in_one(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[[providers]]\nname = "echo"\nkind = "echo"\n')
    config = load(path, {})
    assert [p.name for p in config.providers] == ["echo"]
    assert [m.name for m in config.models] == ["echo", "echo-reasoning"]
    assert [s.name for s in config.scenes] == ["default", "chat", "agent"]


def test_a_providers_address_loses_its_last_slash(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(PROVIDER.replace("/v1", "/v1/") + MODEL)
    (provider,) = load(path, {}).providers
    assert provider.base_url == "https://h/v1"
    assert provider.on
    assert provider.api_key is None


def test_policies_are_read_into_amounts(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(
        '[guard]\non_unavailable = "allow:1.5"\n'
        '[[scenes]]\nname = "a"\non_exhausted = "grace:0.25"\n[[scenes]]\nname = "b"\n'
    )
    config = load(path, {})
    assert config.guard.allow_micro_credits == 1_500_000
    policies = [(s.exhausted_policy, s.grace_micro_credits) for s in config.scenes]
    assert policies == [("grace", 250_000), ("cut", 0)]


# -- small parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "address"),
    [("127.0.0.1:81", ("127.0.0.1", 81)), ("[::1]:81", ("::1", 81)), ("h:0", ("h", 0))],
)
def test_an_address_is_split(text: str, address: tuple[str, int]) -> None:
    assert split_address(text) == address


@pytest.mark.parametrize(
    "text", ["", ":81", "h", "h:", "h:x", "h:65536", "::1:81", "[h]:81", "h:-1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        split_address(text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True), ("[::1]", True),
        ("localhost", True), ("LOCALHOST.", True), ("a.localhost", True), ("0.0.0.0", False),
        ("::", False), ("10.0.0.1", False), ("localhost.example", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_is_told_apart(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


_SCALARS = st.one_of(
    st.booleans(), st.integers(-5, 99_999), st.text("ab:/\n", max_size=6).map(repr)
)
_KEYS = st.sampled_from(["port", "host", "name", "targets", "api_key", "provider", "x", "base_url"])
_TABLES = st.sampled_from(
    ["[server]", "[[models]]", "[[providers]]", "[[scenes]]", "[auth]", "[x.y]"]
)


@given(st.lists(st.one_of(_TABLES, st.builds("{} = {}".format, _KEYS, _SCALARS)), max_size=8))
def test_no_file_ends_in_anything_but_a_configuration_or_its_error(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join(lines).replace("True", "true").replace("False", "false"), "utf-8")
    with contextlib.suppress(ConfigError):
        load(path, {})


POSTGRESQL = "postgresql+asyncpg://u@h/d"


@pytest.mark.parametrize(
    "text",
    [
        f'[database]\nurl = "{POSTGRESQL}"\n[server]\nprocesses = 4',
        f'[database]\nurl = "{POSTGRESQL}"\n[ledger_worker]\nembedded = false',
        f'[database]\nurl = "{POSTGRESQL}"\n[broker]\nkind = "kafka"\nurl = "kafka://a:1,b:2"',
        '[database]\nurl = "postgresql+asyncpg:///d?host=/run/postgresql"',
        '[guard]\nstore = "redis"',
        '[guard]\nstore = "redis"\nredis_url = "rediss://user@h:6380/0"',
        '[broker]\nkind = "redis"\nurl = "redis://h:1/0"',
    ],
)
def test_what_several_processes_share_can_be_chosen(tmp_path: Path, text: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(text)
    load(path, {})


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_postgresql_may_be_written_as_elsewhere(tmp_path: Path, scheme: str) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text(f'[database]\nurl = "{scheme}://u@h/d"')
    assert load(path, {}).database.url == POSTGRESQL


def test_an_address_with_a_password_is_named_and_shown_without(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text('[database]\nurl = "env:DATABASE_URL"\n[guard]\nredis_url = "file:redis"\n')
    (tmp_path / "redis").write_text("rediss://:CANARY2@h:6379/0\n")
    config = load(path, {"DATABASE_URL": "postgresql://u:CANARY%401@h/d"})
    assert config.database.url == "postgresql+asyncpg://u:CANARY%401@h/d"
    assert config.database.shown == "postgresql+asyncpg://u:***@h/d"
    assert password_of(config.database.url) == "CANARY@1"
    assert config.guard.redis_url == "rediss://:CANARY2@h:6379/0"
    assert shown_url(config.guard.redis_url) == "rediss://:***@h:6379/0"
