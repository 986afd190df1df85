"""Re-rating by a real gateway: simulated beside its calls, posted in the background, carried on after kill -9."""

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from tests.support.gateway import (
    ADMIN_TOKEN,
    LLM_GATEWAY,
    PRICES,
    GatewayProcess,
    TestAccount,
    until,
)
from tests.support.provider import ScriptedProvider, json_answer
from tests.support.rawhttp import chat

CALLS = 3
# 7 tokens in (5 cached) and 5 out as the provider tells; each of the 5 costs one more.
DEARER = PRICES.replace('"tests"', '"dearer"').replace('output = "8"', 'output = "9"')


@pytest.fixture(scope="module")
def mortal(
    provider: ScriptedProvider, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[GatewayProcess]:
    """A gateway that is not running; each test kills it and starts it again on the same data."""
    with GatewayProcess(tmp_path_factory.mktemp("mortal"), provider.base_url) as gateway:
        yield gateway


def spend(gateway: GatewayProcess, provider: ScriptedProvider, account: TestAccount) -> int:
    """Some calls, settled; the output tokens of all."""
    for _ in range(CALLS):
        script = provider.script(*json_answer())
        assert gateway.call(chat(x_script=script), account.key).status == 200
    return sum(charge.output + charge.reasoning for charge in gateway.settle(account.id, CALLS))


def prices(gateway: GatewayProcess, *arguments: str) -> dict[str, object]:
    """What a command answers."""
    url = ("--url", f"http://127.0.0.1:{gateway.port}", "--admin-token", ADMIN_TOKEN, "--json")
    command = [*LLM_GATEWAY, "prices", *arguments, *url]
    done = subprocess.run(
        command, cwd=gateway.folder, env=gateway.environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def now() -> str:
    time.sleep(0.002)  # an end of a time is not included
    return datetime.now(UTC).isoformat()


@pytest.mark.parametrize("point", ["rerating_promised", "rerating_held", "rerating_posted"])
def test_a_run_outlives_its_process(
    mortal: GatewayProcess, provider: ScriptedProvider, point: str
) -> None:
    mortal.start(failpoint=point)
    account = mortal.account()
    began = now()
    tokens = spend(mortal, provider, account)
    with mortal.books() as books:
        before = books.balance(account.id)
    (mortal.folder / "dearer.toml").write_text(DEARER)
    version = str(prices(mortal, "upload", "dearer.toml")["version"])
    period = ("--from", began, "--to", now())
    simulated = prices(mortal, "simulate", version, *period)
    assert simulated["totals"]["difference_micro_credits"] == tokens  # type: ignore[index]
    body = {"book": int(version), "from": period[1], "to": period[3], "reason": "too cheap"}
    if point == "rerating_promised":
        with pytest.raises((OSError, AssertionError)):
            mortal.admin("rerating", body)
    else:
        mortal.admin("rerating", body)
    assert mortal.wait() == -9
    mortal.restart()

    def done() -> dict[str, object] | None:
        items = mortal.admin("rerating")["items"]
        assert isinstance(items, list)
        newest: dict[str, object] = items[0]
        return newest if newest["state"] == "done" else None

    run = until(done, "the run to be done")
    assert (run["entries"], run["taken_micro_credits"]) == (CALLS, tokens)
    with mortal.books() as books:
        assert books.balance(account.id) == before - tokens
    mortal.audit()
    assert mortal.stop() == 0
