"""`llm-gateway chat`: a question to any OpenAI-compatible server; a gateway also says its price."""

import os
import re
import time
from typing import Final

import httpx2
import msgspec
import openai
import rich_click as click
from openai.types import CompletionUsage
from openai.types.chat import ChatCompletionChunk

from llm_gateway.api.views.charges import ChargeView
from llm_gateway.cli.client import (
    DEFAULT_URL,
    ONCE,
    data_dir_option,
    failures_told,
    json_option,
    same,
    stored_credentials,
)
from llm_gateway.cli.failure import REFUSED, CommandError
from llm_gateway.cli.output import Credits, print_facts, print_json
from llm_gateway.client import (
    GatewayClient,
    GatewayClientError,
    RefusedError,
    UnreadableAnswerError,
)
from llm_gateway.client.errors import unreachable
from llm_gateway.client.requests import checked_header
from llm_gateway.client.transport import CONNECT_SECONDS, checked_url, trust_env

SETTLED_SECONDS_MAX: Final = 5.0  # to wait for the ledger, which usually takes milliseconds
POLL_SECONDS: Final = 0.05
IDLE_SECONDS_MAX: Final = 300.0  # between two chunks of an answer
_EVENT_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}")


class Server(msgspec.Struct, frozen=True):
    """Whom to ask, and with which key."""

    base_url: str
    key: str

    @property
    def root(self) -> str:
        """Where a gateway has its credit store."""
        return self.base_url.removesuffix("/v1")


class Answer(msgspec.Struct, kw_only=True):
    """What came back. `charge` and `balance` are None where the server is no gateway of ours."""

    text: str = ""
    finish_reason: str | None = None
    request_id: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    charge: ChargeView | None = None
    balance_micro_credits: int | None = None


@click.command()
@click.argument("prompt")
@click.option("--model", default="echo", show_default=True)
@click.option(
    "--base-url",
    envvar="LLM_GATEWAY_BASE_URL",
    metavar="URL",
    help="Any OpenAI-compatible server. Default: the gateway of the credentials.",
)
@click.option(
    "--key",
    metavar="KEY",
    help="Default: LLM_GATEWAY_KEY or the demo account's; elsewhere OPENAI_API_KEY.",
)
@click.option("--scene", help="Sent as X-Scene.")
@click.option("--account", metavar="ID", help="Sent as X-Billing-User, if the key is an app's.")
@data_dir_option
@json_option
def chat(
    prompt: str,
    model: str,
    base_url: str | None,
    key: str | None,
    scene: str | None,
    account: str | None,
    data_dir: str,
    as_json: bool,
) -> None:
    """Ask a model, see the answer as it comes, then what it took."""
    with failures_told():
        server = _server(base_url, key, data_dir)
        asked = (("X-Scene", scene), ("X-Billing-User", account))
        chosen = {name: checked_header(name, text) for name, text in asked if text}
    answer = _ask(server, prompt, model, chosen, echo=not as_json)
    _add_charge(server, answer, account or "")
    if as_json:
        print_json(answer)
    else:
        _print_summary(answer)


def _server(base_url: str | None, key: str | None, data_dir: str) -> Server:
    """The server that was named, else the stored gateway; its key goes to no other address."""
    stored = stored_credentials(data_dir)
    home = f"{stored.url or DEFAULT_URL}/v1"
    url = checked_url(base_url or home)
    env, ours = os.environ, same(url, home)
    names = ("LLM_GATEWAY_KEY",) if ours else ("OPENAI_API_KEY", "LLM_GATEWAY_KEY")
    known = [key, *(env.get(name) for name in names), stored.demo_key if ours else ""]
    found = next((one for one in known if one), "")
    if not found:
        raise CommandError(f"no key for {url}: give --key")
    return Server(url, checked_header("the key", found))


def _ask(server: Server, prompt: str, model: str, headers: dict[str, str], *, echo: bool) -> Answer:
    """Stream the answer, to stdout if `echo`. Raises CommandError."""
    http = httpx2.Client(
        timeout=httpx2.Timeout(IDLE_SECONDS_MAX, connect=CONNECT_SECONDS),
        trust_env=trust_env(server.base_url),
    )
    client = openai.OpenAI(
        base_url=server.base_url, api_key=server.key, http_client=http, default_headers=headers
    )
    answer = Answer()
    try:
        with client:
            raw = client.chat.completions.with_raw_response.create(
                model=model,
                messages=[{"role": "user", "content": prompt}],
                stream=True,
                stream_options={"include_usage": True},
            )
            answer.request_id = raw.headers.get("x-request-id", "")
            for chunk in raw.parse():
                _take(chunk, answer, echo=echo)
    except openai.APIStatusError as error:
        raise CommandError(f"{_message(error)} (HTTP {error.status_code})", REFUSED) from error
    except openai.APIConnectionError as error:
        raise CommandError(_why(server, error)) from error
    except (openai.APIError, httpx2.HTTPError) as error:
        if echo and answer.text:
            click.echo()
        raise CommandError(f"the answer broke off: {error}", REFUSED) from error
    return answer


def _take(chunk: ChatCompletionChunk, answer: Answer, *, echo: bool) -> None:
    if chunk.usage is not None:
        _count(chunk.usage, answer)
    for choice in chunk.choices:
        answer.finish_reason = choice.finish_reason or answer.finish_reason
        if text := choice.delta.content:
            answer.text += text
            if echo:
                click.echo(text, nl=False)


def _count(usage: CompletionUsage, answer: Answer) -> None:
    answer.input_tokens = usage.prompt_tokens
    answer.output_tokens = usage.completion_tokens
    if details := usage.prompt_tokens_details:
        answer.cached_tokens = details.cached_tokens
    if reasoning := usage.completion_tokens_details:
        answer.reasoning_tokens = reasoning.reasoning_tokens


def _add_charge(server: Server, answer: Answer, account: str) -> None:
    """Wait a moment until the charge is in the ledger; a server that is no gateway is left alone."""
    if not _EVENT_ID.fullmatch(answer.request_id):
        return
    try:
        with GatewayClient(server.root, server.key, account=account, retries=ONCE) as client:
            answer.charge = _settled(client, answer.request_id)
            answer.balance_micro_credits = client.balance().balance_micro_credits
    except (RefusedError, UnreadableAnswerError):
        return  # no gateway of ours
    except GatewayClientError:
        # The answer is there and paid for: that its price cannot be read now is no failure.
        click.echo("llm-gateway: the charge could not be read", err=True)


def _settled(client: GatewayClient, event_id: str) -> ChargeView:
    until = time.monotonic() + SETTLED_SECONDS_MAX
    while True:
        charge = client.charge(event_id)
        if charge.settlement not in ("running", "pending") or time.monotonic() > until:
            return charge
        time.sleep(POLL_SECONDS)


def _print_summary(answer: Answer) -> None:
    if answer.text:
        click.echo("\n")
    print_facts([("tokens", _tokens(answer)), *_charge_facts(answer)])


def _tokens(answer: Answer) -> str:
    if answer.input_tokens is None:
        return "not reported"
    cached = f" ({answer.cached_tokens} cached)" if answer.cached_tokens else ""
    thought = f" ({answer.reasoning_tokens} reasoning)" if answer.reasoning_tokens else ""
    return f"{answer.input_tokens} in{cached}, {answer.output_tokens} out{thought}"


def _charge_facts(answer: Answer) -> list[tuple[str, object]]:
    charge = answer.charge
    if charge is None:
        return []
    amount = charge.amount_micro_credits
    state = "" if charge.settlement == "settled" else f" ({charge.settlement})"
    quality = "" if charge.quality in (None, "exact") else f", usage {charge.quality}"
    balance = answer.balance_micro_credits
    return [
        ("charge", f"{Credits(amount)} credits{state}{quality}" if amount is not None else state),
        ("rule", f"{charge.rule_id} (book {charge.book}, scene {charge.scene})"),
        ("balance", f"{Credits(balance)} credits" if balance is not None else ""),
        ("call", charge.event_id),
    ]


def _message(error: openai.APIStatusError) -> str:
    body = error.body
    message = body.get("message") if isinstance(body, dict) else None
    return str(message or error.message)


def _why(server: Server, error: openai.APIConnectionError) -> str:
    if isinstance(error, openai.APITimeoutError):
        return f"{server.base_url} does not answer in time"
    cause = error.__cause__
    return unreachable(server.base_url, cause if isinstance(cause, Exception) else error)
