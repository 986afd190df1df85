"""The JSON Schema of a price book's TOML, which editors complete and check by. Pure."""

import json
from collections.abc import Mapping
from typing import Final

from pricing_rules import hours, reader
from pricing_rules.book import (
    DESCRIPTION_CHARACTERS_MAX,
    PRIORITY_MAX,
    RULES_MAX,
    SERVICE_TIERS_MAX,
)
from pricing_rules.rates import FEES, MINIMUM, TOKEN_CLASSES
from pricing_rules.usage import TOKENS_MAX

Schema = Mapping[str, object]

_WHAT: Final = {
    "input": "Price of 1M tokens of the prompt.",
    "cached_input": "Price of 1M prompt tokens read from the cache; left out: as input.",
    "cache_write_5m": "Price of 1M tokens written to the cache for 5 minutes; left out: as input.",
    "cache_write_1h": "Price of 1M tokens written to the cache for an hour; left out: as "
    "cache_write_5m or input, whichever is dearer.",
    "audio_input": "Price of 1M audio tokens of the prompt; left out: as input.",
    "image_input": "Price of 1M image tokens of the prompt; left out: as input.",
    "output": "Price of 1M tokens of the answer.",
    "reasoning": "Price of 1M reasoning tokens; left out: as output.",
    "audio_output": "Price of 1M audio tokens of the answer; left out: as output.",
    "per_call": "Price of a call, beside its tokens.",
    "per_image": "Price of one image.",
    "per_second": "Price of one begun second of audio or video.",
    "per_character": "Price of one character.",
    "per_search": "Price of one search.",
    "minimum_charge": "The least that a call costs.",
}
_EXAMPLES: Final = {"per_call": "0.001", "per_character": "0.000015", "per_search": "0.01"}


def book_schema() -> Schema:
    """The schema, in the 2020-12 dialect. It knows TOML's dates as texts, as editors do."""
    rule = {
        **_rule_head(),
        **{name: _price(name) for name in (*TOKEN_CLASSES, *FEES, MINIMUM)},
        "tiers": _list(_tier(), "Prices of calls with a long prompt; the whole call moves."),
        "hours": _list(_hours(), "Hours in which every price is multiplied."),
        "service_tiers": {
            "description": "By how much each service tier multiplies the prices per token.",
            "type": "object",
            "minProperties": 1,
            "maxProperties": SERVICE_TIERS_MAX,
            "propertyNames": {
                "pattern": f"^{reader.SERVICE_TIER}$",
                "not": {"enum": ["auto", "default"]},
            },
            "additionalProperties": _factor("2"),
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Price book of llm-gateway",
        "type": "object",
        "required": ["book", "rule"],
        "additionalProperties": False,
        "properties": {
            "book": _table(
                {
                    "name": _name("What the book is called."),
                    "currency": _currency(),
                    "credits_per_unit": _positive("How many credits one unit of it is."),
                    "effective_from": _moment("Once activated, it takes effect then."),
                },
                ["name", "currency", "credits_per_unit"],
            ),
            "rule": {
                "type": "array",
                "minItems": 1,
                "maxItems": RULES_MAX,
                "items": {
                    **_table(rule, ["id", "provider", "model"]),
                    # Free, or both prices written.
                    "if": {"properties": {"free": {"const": True}}, "required": ["free"]},
                    "else": {"required": ["input", "output"]},
                },
            },
        },
    }


def schema_text() -> str:
    """The schema as the file that ships."""
    return json.dumps(book_schema(), indent=2) + "\n"


def _rule_head() -> dict[str, Schema]:
    return {
        "id": {
            "description": "Names the rule, in charges and in the header X-Price-Rule.",
            "type": "string",
            "pattern": f"^(?:{reader.ID})$",
        },
        "description": {
            "description": "The price list that it is from, and its date.",
            "type": "string",
            "maxLength": DESCRIPTION_CHARACTERS_MAX,
            "pattern": _ONE_LINE,
        },
        "scene": _pattern('A scene, "*", or a pattern of "*" and "?".'),
        "provider": _pattern("A provider's name in gateway.toml, or a pattern."),
        "model": _pattern("The model's name as sent to the provider, or a pattern."),
        "priority": {
            "description": "The higher wins; then the narrower scene, provider, model.",
            "type": "integer",
            "minimum": -PRIORITY_MAX,
            "maximum": PRIORITY_MAX,
        },
        "status": {"enum": ["active", "disabled"]},
        "valid_from": _moment("It prices calls admitted from then on."),
        "valid_until": _moment("It prices calls admitted before then."),
        "currency": _currency(),
        "credits_per_unit": _positive("How many credits one unit of the currency is."),
        "free": {"description": "It costs nothing.", "type": "boolean"},
    }


def _tier() -> Schema:
    tokens = {"type": "integer", "minimum": 1, "maximum": TOKENS_MAX - 1}
    tier = _table(
        {
            "over_input_tokens": {"description": "Calls with more than so many.", **tokens},
            "from_input_tokens": {"description": "Calls with so many or more.", **tokens},
            **{name: _price(name) for name in TOKEN_CLASSES},
        },
        [],
    )
    starts = [{"required": [name]} for name in ("over_input_tokens", "from_input_tokens")]
    # A start and at least one price.
    return {**tier, "minProperties": 2, "oneOf": starts}


def _hours() -> Schema:
    return _table(
        {
            "days": {
                "description": f'Days on which the hours begin, like "Mon-Fri"; left out: all. '
                f"Out of {', '.join(hours.DAYS)}.",
                "type": "string",
                "maxLength": reader.NAME_CHARACTERS_MAX,
                "pattern": f"^{hours.SPAN}(?: *, *{hours.SPAN})*$",
            },
            "tz": {
                "description": "A time zone of the IANA database; left out: UTC.",
                "type": "string",
                "pattern": f"^{hours.ZONE}$",
            },
            "from": {"type": "string", "pattern": "^(?:[01][0-9]|2[0-3]):[0-5][0-9]$"},
            "to": {
                "description": "Not later than from: it is meant of the next day.",
                "type": "string",
                "pattern": f"^(?:{hours.TIME})$",
            },
            "multiply": _factor("2"),
        },
        ["from", "to", "multiply"],
    )


_ONE_LINE: Final = r"^[^\u0000-\u001f\u007f]*$"


def _table(properties: Mapping[str, Schema], required: list[str]) -> Schema:
    return {
        "type": "object",
        "required": required,
        "additionalProperties": False,
        "properties": properties,
    }


def _list(items: Schema, description: str) -> Schema:
    return {
        "description": description,
        "type": "array",
        "minItems": 1,
        "maxItems": reader.ENTRIES_MAX,
        "items": items,
    }


def _name(description: str) -> Schema:
    return {
        "description": description,
        "type": "string",
        "minLength": 1,
        "maxLength": reader.NAME_CHARACTERS_MAX,
        "pattern": _ONE_LINE,
    }


def _pattern(description: str) -> Schema:
    most = reader.WILDCARDS_MAX
    return {
        **_name(description),
        "allOf": [{"pattern": rf"^[^*?]*(?:[*?][^*?]*){{0,{most}}}$"}],
    }


def _currency() -> Schema:
    return {
        "description": "A currency's code.",
        "type": "string",
        "pattern": f"^{reader.CURRENCY}$",
        "examples": ["USD", "EUR", "CNY"],
    }


def _price(name: str) -> Schema:
    return {
        "description": _WHAT[name],
        "type": "string",
        "pattern": f"^{reader.DECIMAL}$",
        "examples": [_EXAMPLES.get(name, "2.50")],
    }


def _positive(description: str) -> Schema:
    return {
        "description": description,
        "type": "string",
        "pattern": f"^(?=.*[1-9]){reader.DECIMAL}$",
        "examples": ["100"],
    }


def _factor(example: str) -> Schema:
    most = reader.MULTIPLIER_MAX
    return {
        "description": f"A factor in quotes, above 0 and at most {most}.",
        "type": "string",
        "pattern": r"^(?=.*[1-9])0*(?:[0-9]{1,3}(?:\.[0-9]{1,12})?|1000(?:\.0{1,12})?)$",
        "maxLength": 22,
        "examples": [example],
    }


def _moment(description: str) -> Schema:
    return {
        "description": f"{description} A date and time with its zone, without quotes.",
        "type": "string",
        "format": "date-time",
    }
