"""What quotes and estimates in a test of the HTTP API, on the control plane's database."""

from billing.guard import CreditBalanceGuard
from billing.holds.database import DatabaseHoldStore
from llm_gateway.config import Config, ModelConfig, PricingConfig, ProviderConfig, TargetConfig
from llm_gateway.estimate import Estimator
from llm_gateway.quoting import Quoter
from llm_gateway.tokens import TokenCounter
from tests.support.control import PROCESS, Control

BODY_BYTES_MAX = 1_000_000
MIN_OUTPUT_TOKENS = 64


def model(name: str, *providers: str, max_output_tokens: int = 1_000) -> ModelConfig:
    """A model that these providers serve by the same name."""
    return ModelConfig(
        name=name,
        max_output_tokens=max_output_tokens,
        targets=tuple(TargetConfig(provider=each, model=name) for each in providers or ("echo",)),
    )


SETTINGS = Config(
    providers=(ProviderConfig(name="echo", kind="echo"),),
    models=(model("mini"), model("agent-model"), model("disabled-model"), model("unpriced")),
)
FALLING_BACK = Config(
    providers=SETTINGS.providers,
    models=SETTINGS.models,
    pricing=PricingConfig(unknown_model="fallback", fallback_rule="echo-mini"),
)


def quoter_of(plane: Control, settings: Config = SETTINGS) -> Quoter:
    return Quoter(settings, plane.books, TokenCounter())


def estimator_of(plane: Control, settings: Config = SETTINGS) -> Estimator:
    return Estimator(
        quoter=quoter_of(plane, settings),
        guard=CreditBalanceGuard(
            DatabaseHoldStore(plane.hot), process=PROCESS, min_output_tokens=MIN_OUTPUT_TOKENS
        ),
        database=plane.database,
        accounts=plane.accounts,
        body_bytes_max=BODY_BYTES_MAX,
        now_ms=plane.clock.now_ms,
    )
