"""One provider and one gateway process for each module of tests; an account of its own for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.gateway import GatewayProcess, TestAccount
from tests.support.provider import ScriptedProvider


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="module")
def provider() -> Iterator[ScriptedProvider]:
    with ScriptedProvider() as provider:
        yield provider


@pytest.fixture(scope="module")
def gateway(
    provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A running gateway; whatever the tests did to it, its books must be right at the end."""
    with GatewayProcess(tmp_path_factory.mktemp("gateway"), provider.base_url) as gateway:
        gateway.start()
        yield gateway
        gateway.audit()
        assert gateway.stop() == 0, gateway.output
        assert "Traceback" not in gateway.output


@pytest.fixture
def account(gateway: GatewayProcess) -> TestAccount:
    """A new account with 1,000 credits."""
    return gateway.account()
