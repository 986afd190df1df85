"""docker-compose.yml against the product: its commands are real, its settings load, its secrets are not ours."""

import re
from pathlib import Path
from typing import Any

import pytest
import rich_click as click
import yaml

from billing.settlement.broker_address import parse_kafka
from llm_gateway.cli import cli
from llm_gateway.config import load

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("migrate", "gateway", "worker")
SECRET = "0123456789abcdef"
_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


def env_example() -> dict[str, str]:
    lines = (ROOT / ".env.example").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def filled_in() -> dict[str, str]:
    """What a person makes of .env.example: every empty value gets one."""
    return {name: value or SECRET for name, value in env_example().items()}


def substituted(text: str) -> str:
    return _VARIABLE.sub(lambda found: filled_in().get(found[1]) or found[3] or "", text)


def environment(service: str) -> dict[str, str]:
    given: dict[str, Any] = SERVICES[service]["environment"]
    return {name: substituted(str(value)) for name, value in given.items()}


def llm_gateway_commands() -> list[list[str]]:
    commands = [SERVICES[name]["command"] for name in OURS]
    checks = [
        service["healthcheck"]["test"][1:]
        for service in SERVICES.values()
        if "test" in service["healthcheck"]
    ]
    return [each for each in [*commands, *checks] if each[0] == "llm-gateway"]


@pytest.mark.parametrize("command", llm_gateway_commands(), ids=" ".join)
def test_a_command_is_one_of_ours(command: list[str]) -> None:
    _, name, *arguments = command
    context = click.Context(cli)
    found = cli.get_command(context, name)
    assert found is not None, f"llm-gateway has no command {name}"
    # Parsing says what is unknown or malformed, and runs nothing.
    found.make_context(name, arguments, parent=context, resilient_parsing=False)


@pytest.mark.parametrize("service", OURS)
def test_the_settings_load_in_the_service(service: str) -> None:
    volumes = [str(volume).split(":") for volume in SERVICES[service]["volumes"]]
    mounted = {volume[1]: volume[0] for volume in volumes}
    command = SERVICES[service]["command"]
    file = mounted[command[command.index("--config") + 1]]
    config = load(ROOT / file, environment(service))
    assert config.database.url == f"postgresql+asyncpg://gateway:{SECRET}@postgres:5432/gateway"
    assert config.guard.store == "redis"
    assert config.guard.redis_url == f"redis://:{SECRET}@redis:6379/0"
    assert config.broker.kind == "kafka"
    address = parse_kafka(config.broker.url)
    assert address.servers == ("kafka:9092",)
    assert (address.user, address.password) == ("gateway", SECRET)
    assert config.server.processes == 2
    assert not config.ledger_worker.embedded
    assert any(provider.on for provider in config.providers)
    grace = int(SERVICES["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > config.server.shutdown_seconds


def test_the_address_names_services_and_what_they_listen_on() -> None:
    assert "CLIENTS://kafka:9092" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    mechanism = SERVICES["kafka"]["environment"]["KAFKA_SASL_ENABLED_MECHANISMS"]
    assert parse_kafka(environment("gateway")["GATEWAY_BROKER_URL"]).mechanism == mechanism
    assert environment("postgres")["POSTGRES_USER"] == environment("postgres")["POSTGRES_DB"]


def test_no_secret_has_a_default() -> None:
    for name, value in env_example().items():
        if name.endswith(("PASSWORD", "TOKEN", "KEY")):
            assert value == "", f"{name} must be empty in .env.example"
    for name, mark, default in _VARIABLE.findall(TEXT):
        if name.endswith(("PASSWORD", "TOKEN")):
            assert mark == "?", f"{name} must be required"
        elif name.endswith("KEY"):
            assert default == ""


def test_every_variable_is_in_the_example() -> None:
    assert {name for name, *_ in _VARIABLE.findall(TEXT)} == env_example().keys()


def test_only_the_gateway_is_open_to_others() -> None:
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["gateway"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_watched_and_comes_back(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] in {"unless-stopped", "on-failure"}
    assert ("test" in service["healthcheck"]) is (name != "migrate")


def test_what_others_wait_for_is_checked() -> None:
    for service in SERVICES.values():
        for name, how in service.get("depends_on", {}).items():
            finishes = how["condition"] == "service_completed_successfully"
            assert finishes is (name == "migrate")
            assert finishes or "test" in SERVICES[name]["healthcheck"]


def test_data_lies_on_named_volumes() -> None:
    kept = {
        str(volume).split(":")[0]
        for service in SERVICES.values()
        for volume in service["volumes"]
        if not str(volume).startswith("./")
    }
    assert kept == COMPOSE["volumes"].keys()
    assert {"postgres", "gateway"} <= kept


def test_redis_never_evicts() -> None:
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
