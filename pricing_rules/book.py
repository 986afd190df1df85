"""The price book: an admin's TOML file, read strictly into rules with exact integer rates. Pure."""

import re
import tomllib
from decimal import Decimal
from typing import Final, Literal

import msgspec

from pricing_rules import hours
from pricing_rules.hours import Hours, Multiplier
from pricing_rules.index import INDEX_REST_MAX, Index
from pricing_rules.lines import Lines
from pricing_rules.rates import FEES, MINIMUM, TOKEN_CLASSES, Card, Exact, Fees, Rates, exact
from pricing_rules.reader import SERVICE_TIER, Problem, Problems, Table, show_key
from pricing_rules.ties import find_ties
from pricing_rules.usage import TOKENS_MAX

__all__ = [
    "Book",
    "BookError",
    "Problem",
    "Reading",
    "Rule",
    "ServiceTier",
    "Tier",
    "parse_book",
    "read_book",
]

BOOK_CHARACTERS_MAX: Final = 6_000_000
RULES_MAX: Final = 20_000
DESCRIPTION_CHARACTERS_MAX: Final = 1_000
PRIORITY_MAX: Final = 1_000_000
SERVICE_TIERS_MAX: Final = 20
# What a text may have of each, so that reading it ends in bounded time whatever it is.
_PIECES_MAX: Final = 350_000
_DOTS_MAX: Final = 100_000  # outside of quotes, where prices do not belong; so is the next
_DOTS_OF_A_LINE_MAX: Final = 16
_QUOTED_CHARACTERS_MAX: Final = 10_000  # a description with each character written as \U00000000
# A comment or a text in quotes, closed or broken off by the end of its line or of all; never one
# that is too long. Nothing is tried twice: the time it takes grows with the length alone.
_SO_MANY: Final = f"{{0,{_QUOTED_CHARACTERS_MAX}}}+"
_QUOTED: Final = (
    r"\#[^\n]*+"
    rf'''|"""(?:[^"\\]|\\[\s\S]|"(?!"")){_SO_MANY}(?:"{{3,5}}|\Z)'''
    rf"""|'''(?:[^']|'(?!'')){_SO_MANY}(?:'{{3,5}}|\Z)"""
    rf"""|"(?!"")(?:[^"\\\n]|\\[^\n]){_SO_MANY}(?:"|(?=\\?(?:\n|\Z)))"""
    rf"""|'(?!'')[^'\n]{_SO_MANY}(?:'|(?=\n)|\Z)"""
)

PLAIN_SERVICE_TIERS: Final = ("auto", "default")  # at the price that a rule gives


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Prices of calls with a long prompt: the whole call moves there. Texts as uploaded."""

    over_input_tokens: int | None  # either of the two
    from_input_tokens: int | None
    input: str | None
    cached_input: str | None
    cache_write_5m: str | None
    cache_write_1h: str | None
    audio_input: str | None
    image_input: str | None
    output: str | None
    reasoning: str | None
    audio_output: str | None

    @property
    def first_tokens(self) -> int:
        """The fewest tokens of the whole input with which a call is in this tier."""
        if self.from_input_tokens is not None:
            return self.from_input_tokens
        return (self.over_input_tokens or 0) + 1


class ServiceTier(msgspec.Struct, frozen=True, kw_only=True):
    """How many times the price per token counts for calls of a service tier."""

    name: str
    multiply: Multiplier


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """What the calls cost that match scene, provider and model.

    The texts stand as uploaded, None where left out. `cards`, `fees` and `minimum` say the same in
    micro-credits: a token costs rate / denominator, a call costs fee / denominator.
    """

    id: str
    description: str
    scene: str
    provider: str
    model: str
    priority: int
    status: Literal["active", "disabled"]
    valid_from: int | None  # milliseconds since the epoch; holds from then on
    valid_until: int | None  # and no longer than until then
    currency: str
    credits_per_unit: str  # credits per unit of the currency
    free: bool
    input: str | None  # this and all up to audio_output: currency per 1M tokens
    cached_input: str | None
    cache_write_5m: str | None
    cache_write_1h: str | None
    audio_input: str | None
    image_input: str | None
    output: str | None
    reasoning: str | None
    audio_output: str | None
    per_call: str | None  # currency for one; so are the next four
    per_image: str | None
    per_second: str | None
    per_character: str | None
    per_search: str | None
    minimum_charge: str | None  # currency for one call
    tiers: tuple[Tier, ...]  # in the order of the file
    hours: tuple[Hours, ...]
    service_tiers: tuple[ServiceTier, ...]

    cards: tuple[Card, ...]  # ascending by input tokens; the first from 0
    fees: Fees
    minimum: int
    denominator: int  # a power of ten
    # By card: from how many input tokens on, and the dearest rates of input and output up to there.
    worst: tuple[tuple[int, int, int], ...]
    dearest_hours: Multiplier
    dearest_service: Multiplier

    number: int  # of its [[rule]] in the file, from 0
    line: int

    @property
    def rates(self) -> Rates:
        """The rates of a call below all tiers."""
        return self.cards[0].rates


class Book(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """One immutable version of all rules.

    Two books are equal only if they are the same object: that keeps `match` cheap, which has the
    book as part of its cache's key.
    """

    name: str
    currency: str
    credits_per_unit: str
    effective_from: int | None  # milliseconds since the epoch
    rules: tuple[Rule, ...]
    index: Index[Rule]  # of the active rules


class BookError(Exception):
    """A text that is no price book; `problems` has every error found, in the order of lines."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """All that could be read: the book if there is no error, the good rules in any case."""

    book: Book | None
    rules: tuple[Rule, ...]
    problems: tuple[Problem, ...]
    lines: Lines | None  # None if the text is not TOML


def parse_book(text: str | bytes) -> Book:
    """Read a price book; raises BookError with every problem, not only the first."""
    reading = read_book(text)
    if reading.book is None:
        raise BookError(reading.problems)
    return reading.book


def read_book(text: str | bytes) -> Reading:
    """Read as much of a price book as can be read; `lint` judges also the rules of a bad one."""
    if isinstance(text, bytes):
        try:
            decoded = text.decode()
        except UnicodeDecodeError as error:
            line = text.count(b"\n", 0, error.start) + 1
            message = "this is not UTF-8 text: save it as UTF-8, which TOML demands"
            return _unreadable(line, message, error.start - text.rfind(b"\n", 0, error.start))
        text = decoded
    text = text.removeprefix("\ufeff")
    if refused := _too_much(text):
        return refused
    try:
        # Decimal, so that a price without quotes can be shown as it was written.
        document: dict[str, object] = tomllib.loads(text, parse_float=Decimal)
    except (tomllib.TOMLDecodeError, ValueError, ArithmeticError, RecursionError) as error:
        line, column = _place_of(error, text)
        return _unreadable(line, f"this is not TOML: {error}", column)

    problems = Problems(Lines(text.replace("\r\n", "\n")))
    top = Table(values=document, path=(), problems=problems)
    top.refuse_unknown(_TOP_KEYS)
    head = _read_head(top)
    rules = _read_rules(top, head, _header_lines(text))
    _note_repeated_ids(rules, problems)
    _note_ties(rules, problems)
    index = Index(rule for rule in rules if rule.status == "active")
    _note_unindexed(index, problems)
    book = None
    if not problems.found and head is not None:
        book = Book(
            name=head.name,
            currency=head.currency,
            credits_per_unit=head.credits_per_unit,
            effective_from=head.effective_from,
            rules=rules,
            index=index,
        )
    return Reading(book=book, rules=rules, problems=problems.in_order(), lines=problems.lines)


_TOP_KEYS: Final = ("book", "rule")
_BOOK_KEYS: Final = ("name", "currency", "credits_per_unit", "effective_from")
RULE_KEYS: Final = (
    "id",
    "description",
    "scene",
    "provider",
    "model",
    "priority",
    "status",
    "valid_from",
    "valid_until",
    "currency",
    "credits_per_unit",
    "free",
    *TOKEN_CLASSES,
    *FEES,
    MINIMUM,
    "tiers",
    "hours",
    "service_tiers",
)
_TIER_KEYS: Final = ("over_input_tokens", "from_input_tokens", *TOKEN_CLASSES)
_HOURS_KEYS: Final = ("days", "tz", "from", "to", "multiply")
_TIER_EXAMPLE: Final = 'over_input_tokens = 200000, input = "5.00", output = "20.00"'
_HOURS_EXAMPLE: Final = 'days = "Mon-Fri", tz = "UTC", from = "01:00", to = "04:00", multiply = "2"'
_SERVICE_EXAMPLE: Final = 'service_tiers = { priority = "1.7", flex = "0.5" }'
_SERVICE_TIER: Final = re.compile(SERVICE_TIER)
_COMMENT_OR_TEXT: Final = re.compile(_QUOTED)
_UP_TO_LONG_TEXT: Final = re.compile(rf"""(?:[^"'#]++|{_QUOTED})*+""")
_AT: Final = re.compile(r"\(at line ([0-9]+), column ([0-9]+)\)")
_HEADER: Final = re.compile(r"^[ \t]*\[\[[ \t]*rule[ \t]*\]\]", re.MULTILINE)


class _Head(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    currency: str
    credits_per_unit: str
    effective_from: int | None


def _read_head(top: Table) -> _Head | None:
    values = top.values.get("book")
    if not isinstance(values, dict):
        top.wrong(
            "book",
            "is missing; a price book begins with [book] and its name, currency and "
            "credits_per_unit"
            if values is None
            else "must be one table: write [book], in single brackets",
            expected="one table",
            example="[book]",
        )
        return None
    table = Table(values=values, path=("book",), problems=top.problems)
    table.refuse_unknown(_BOOK_KEYS)
    name, currency = table.name("name"), table.currency()
    credits_per_unit = table.credits_per_unit(currency)
    effective_from = table.moment("effective_from")
    table.require("name", 'name = "2026-12 list prices"')
    table.require("currency", 'currency = "USD"')
    table.require("credits_per_unit", 'credits_per_unit = "100"')
    if name is None or currency is None or credits_per_unit is None:
        return None
    return _Head(
        name=name,
        currency=currency,
        credits_per_unit=credits_per_unit,
        effective_from=effective_from,
    )


def _read_rules(top: Table, head: _Head | None, header_lines: list[int]) -> tuple[Rule, ...]:
    entries = top.values.get("rule", [])
    if not isinstance(entries, list):
        top.wrong(
            "rule",
            "must be a list of tables: write [[rule]], in double brackets",
            expected="a list of tables",
            example="[[rule]]",
        )
        return ()
    if not 0 < len(entries) <= RULES_MAX:
        top.wrong(
            "rule",
            f"there are {len(entries)} rules; at most {RULES_MAX} are allowed"
            if entries
            else "there is no rule, so that every call would be refused; add a [[rule]]",
        )
        return ()
    lines = header_lines if len(header_lines) == len(entries) else None
    rules: list[Rule] = []
    for number, values in enumerate(entries):
        if not isinstance(values, dict):
            top.wrong("rule", f"entry {number + 1} must be a table: write [[rule]]")
            continue
        table = Table(values=values, path=("rule", number), problems=top.problems)
        line = top.problems.lines.of("rule", number) if lines is None else lines[number]
        rule = _read_rule(table, head, number, line)
        if rule is not None:
            rules.append(rule)
    return tuple(rules)


def _read_rule(table: Table, head: _Head | None, number: int, line: int) -> Rule | None:
    table.refuse_unknown(RULE_KEYS)
    table.require("id", 'id = "openai-gpt-4o"')
    table.require("provider", 'provider = "openai", its name in gateway.toml, or "*"')
    table.require("model", 'model = "gpt-4o", the name sent to the provider')
    rule_id = table.identifier("id")
    scene = table.pattern("scene") if "scene" in table.values else "*"
    provider, model = table.pattern("provider"), table.pattern("model")
    description = table.text("description", longest=DESCRIPTION_CHARACTERS_MAX)
    priority = table.integer("priority", limit=PRIORITY_MAX)
    is_disabled = table.choice("status", ("active", "disabled")) == "disabled"
    valid_from, valid_until = _read_window(table)
    money = _read_money(table, head)
    is_free = table.flag("free")
    prices = _read_prices(table, is_free=is_free)
    if not table.sound or rule_id is None or scene is None or provider is None or model is None:
        return None
    if money is None or prices is None:
        return None
    currency, credits_per_unit = money
    resolved = prices.exact(credits_per_unit)
    return Rule(
        id=rule_id,
        description=description or "",
        scene=scene,
        provider=provider,
        model=model,
        priority=priority,
        status="disabled" if is_disabled else "active",
        valid_from=valid_from,
        valid_until=valid_until,
        currency=currency,
        credits_per_unit=credits_per_unit,
        free=is_free,
        **{name: prices.base.get(name) for name in TOKEN_CLASSES},
        **{name: prices.fees.get(name) for name in (*FEES, MINIMUM)},
        tiers=prices.tiers,
        hours=prices.hours,
        service_tiers=prices.service_tiers,
        cards=resolved.cards,
        fees=resolved.fees,
        minimum=resolved.minimum,
        denominator=resolved.denominator,
        worst=_worst(resolved.cards),
        dearest_hours=hours.dearest(tuple(each.multiply for each in prices.hours)),
        dearest_service=hours.dearest(tuple(each.multiply for each in prices.service_tiers)),
        number=number,
        line=line,
    )


def _read_window(table: Table) -> tuple[int | None, int | None]:
    valid_from, valid_until = table.moment("valid_from"), table.moment("valid_until")
    if valid_from is not None and valid_until is not None and valid_until <= valid_from:
        table.wrong(
            "valid_until",
            "is not after valid_from, so that the rule would never apply",
            expected="a moment after valid_from",
        )
    return valid_from, valid_until


def _read_money(table: Table, head: _Head | None) -> tuple[str, str] | None:
    """Currency and credits per unit of a rule, its own or the book's; None without a book."""
    currency = table.currency()
    credits_per_unit = table.credits_per_unit(currency)
    if head is None:
        return None
    if currency not in (None, head.currency) and "credits_per_unit" not in table.values:
        table.wrong(
            "currency",
            f"is {currency}, but the book's credits_per_unit is for {head.currency}: add "
            f'credits_per_unit = "..." to this rule, how many credits 1 {currency} is',
        )
    return currency or head.currency, credits_per_unit or head.credits_per_unit


class _Prices(msgspec.Struct, frozen=True, kw_only=True):
    """All prices of a rule as written, those left out not there."""

    base: dict[str, str]
    fees: dict[str, str]
    tiers: tuple[Tier, ...]
    hours: tuple[Hours, ...]
    service_tiers: tuple[ServiceTier, ...]

    def exact(self, credits_per_unit: str) -> Exact:
        """The same prices as integers."""
        tiers = sorted(
            ((tier.first_tokens, _written(tier)) for tier in self.tiers), key=lambda tier: tier[0]
        )
        return exact(self.base, tiers, self.fees, credits_per_unit)


def _read_prices(table: Table, *, is_free: bool) -> _Prices | None:
    base, fees = _decimals(table, TOKEN_CLASSES), _decimals(table, (*FEES, MINIMUM))
    tiers = _read_tiers(table)
    prices = _Prices(
        base=base,
        fees=fees,
        tiers=tiers,
        hours=_read_hours(table),
        service_tiers=_read_service_tiers(table),
    )
    written = {**base, **fees}
    above_zero = [key for key, text in written.items() if text.strip("0.")]
    dear_tier = any(text.strip("0.") for tier in tiers for text in _written(tier).values())
    if is_free:
        for key in [*above_zero, *(["tiers"] if dear_tier else [])]:
            table.wrong(key, "is above 0 in a rule that says free = true: remove one of the two")
        return prices
    table.require("input", 'input = "2.50", the price of 1M tokens; or free = true')
    table.require("output", 'output = "10.00", the price of 1M tokens; or free = true')
    if table.sound and not above_zero and not dear_tier:
        table.wrong(
            "input", "every price of this rule is 0: write the prices, or free = true if it is free"
        )
    return prices


def _decimals(table: Table, names: tuple[str, ...]) -> dict[str, str]:
    values = table.values
    return {
        name: text for name in names if name in values and (text := table.decimal(name)) is not None
    }


def _written(tier: Tier) -> dict[str, str]:
    prices = {name: getattr(tier, name) for name in TOKEN_CLASSES}
    return {name: text for name, text in prices.items() if text is not None}


def _read_tiers(table: Table) -> tuple[Tier, ...]:
    if "tiers" not in table.values:
        return ()
    tiers: list[Tier] = []
    for entry in table.tables("tiers", _TIER_EXAMPLE):
        entry.refuse_unknown(_TIER_KEYS)
        over, first = (
            _read_tokens(entry, "over_input_tokens"),
            _read_tokens(entry, "from_input_tokens"),
        )
        prices = _decimals(entry, TOKEN_CLASSES)
        if ("over_input_tokens" in entry.values) == ("from_input_tokens" in entry.values):
            entry.wrong(
                "over_input_tokens",
                "a tier says either over_input_tokens (more than so many) or from_input_tokens "
                "(so many or more)",
                expected="one of over_input_tokens and from_input_tokens",
                example=_TIER_EXAMPLE,
            )
        elif entry.sound and not prices:
            entry.wrong(
                "",
                "a tier without a price changes nothing: write its prices",
                example=_TIER_EXAMPLE,
            )
        table.sound = table.sound and entry.sound
        if entry.sound:
            tier = Tier(
                over_input_tokens=over,
                from_input_tokens=first,
                **{name: prices.get(name) for name in TOKEN_CLASSES},
            )
            if any(tier.first_tokens == other.first_tokens for other in tiers):
                table.wrong(
                    "tiers", f"two tiers begin at {tier.first_tokens} input tokens: keep one"
                )
            tiers.append(tier)
    return tuple(tiers)


def _read_tokens(entry: Table, key: str) -> int | None:
    value = entry.values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < TOKENS_MAX:
        entry.wrong(
            key,
            f"must be a number of tokens without quotes, above 0, like {key} = 200000",
            expected=f"a whole number from 1 to {TOKENS_MAX - 1}",
            example=f"{key} = 200000",
        )
        return None
    return value


def _read_hours(table: Table) -> tuple[Hours, ...]:
    if "hours" not in table.values:
        return ()
    found: list[Hours] = []
    for entry in table.tables("hours", _HOURS_EXAMPLE):
        entry.refuse_unknown(_HOURS_KEYS)
        for key, example in (("from", "01:00"), ("to", "04:00"), ("multiply", "2")):
            entry.require(key, f'{key} = "{example}"')
        days = entry.name("days") if "days" in entry.values else hours.EVERY_DAY
        tz = entry.name("tz") if "tz" in entry.values else "UTC"
        start, end = _read_time(entry, "from"), _read_time(entry, "to")
        multiply = entry.multiplier("multiply")
        weekdays = None if days is None else hours.read_days(days)
        if days is not None and weekdays is None:
            entry.wrong(
                "days",
                f'"{days[:40]}" names no days: write for example "Mon-Fri", "Sat,Sun" or "Wed"',
                expected=f"days out of {', '.join(hours.DAYS)}, with - and ,",
                example='days = "Mon-Fri"',
            )
        if tz is not None and hours.zone(tz) is None:
            entry.wrong(
                "tz",
                f'"{show_key(tz)}" is no time zone: write a name of the IANA database, like '
                '"Asia/Shanghai", or "UTC"',
                expected="a name of the IANA time zone database",
                example='tz = "Asia/Shanghai"',
            )
        if start is not None and start == end:
            entry.wrong(
                "to",
                'is the same as from: for the whole day write from = "00:00", to = "24:00"',
                expected="another time than from",
            )
        table.sound = table.sound and entry.sound
        if entry.sound and weekdays is not None and start is not None and end is not None:
            assert days is not None
            assert tz is not None
            assert multiply is not None
            found.append(
                Hours(
                    days=days,
                    tz=tz,
                    start=str(entry.values["from"]),
                    end=str(entry.values["to"]),
                    multiply=multiply,
                    weekdays=weekdays,
                    start_minute=start,
                    end_minute=end,
                )
            )
    return tuple(found)


def _read_time(entry: Table, key: str) -> int | None:
    text = entry.name(key)
    if text is None:
        return None
    minute = hours.read_time(text)
    if minute is None or (key == "from" and minute == hours.MINUTES_OF_A_DAY):
        entry.wrong(
            key,
            f'"{text[:40]}" is no time of day: write hours and minutes like "01:00" or "23:30"',
            expected='a time from "00:00" to ' + ('"24:00"' if key == "to" else '"23:59"'),
            example=f'{key} = "01:00"',
        )
        return None
    return minute


def _read_service_tiers(table: Table) -> tuple[ServiceTier, ...]:
    if "service_tiers" not in table.values:
        return ()
    values = table.values["service_tiers"]
    if not isinstance(values, dict) or not values:
        table.wrong(
            "service_tiers",
            f"must be a table of factors, like {_SERVICE_EXAMPLE}",
            expected="a table of factors by name",
            example=_SERVICE_EXAMPLE,
        )
        return ()
    if len(values) > SERVICE_TIERS_MAX:
        table.wrong("service_tiers", f"has over {SERVICE_TIERS_MAX} entries")
        return ()
    entry = table.below(values, "service_tiers")
    found: list[ServiceTier] = []
    for name in values:
        if name in PLAIN_SERVICE_TIERS:
            entry.wrong(name, "always counts once: leave it out")
        elif not _SERVICE_TIER.fullmatch(name):
            entry.wrong(
                name,
                "is no name of a service tier: at most 32 letters, digits and . _ -",
                example=_SERVICE_EXAMPLE,
            )
        elif (multiply := entry.multiplier(name)) is not None:
            found.append(ServiceTier(name=name, multiply=multiply))
    table.sound = table.sound and entry.sound
    return tuple(found)


def _worst(cards: tuple[Card, ...]) -> tuple[tuple[int, int, int], ...]:
    """The dearest rates that so long an input can meet, the tiers below included."""
    found: list[tuple[int, int, int]] = []
    most_input = most_output = 0
    for card in cards:
        most_input = max(most_input, card.rates.dearest_input)
        most_output = max(most_output, card.rates.dearest_output)
        found.append((card.from_input_tokens, most_input, most_output))
    return tuple(found)


def _note_repeated_ids(rules: tuple[Rule, ...], problems: Problems) -> None:
    seen: dict[str, Rule] = {}
    for rule in rules:
        first = seen.setdefault(rule.id, rule)
        if first is not rule:
            message = f"the rule at line {first.line} has the same id: choose another"
            problems.add(("rule", rule.number, "id"), rule=rule.id, message=message)


def _note_ties(rules: tuple[Rule, ...], problems: Problems) -> None:
    ties, undecided = find_ties([rule for rule in rules if rule.status == "active"])
    for earlier, later in ties:
        problems.add(
            ("rule", later.number, "model"),
            rule=later.id,
            message=f'ties with rule "{earlier.id}" at line {earlier.line}: both can match one '
            "call and neither is more specific; give one of them a higher priority, or make its "
            "scene, provider or model narrower",
        )
    if undecided is not None:
        problems.add(
            ("rule", undecided.number, "model"),
            rule=undecided.id,
            message="so many rules have patterns alike that it cannot be told whether two of them "
            "tie: begin the patterns with different letters, or write names instead",
        )


def _note_unindexed(index: Index[Rule], problems: Problems) -> None:
    if len(index.rest) > INDEX_REST_MAX:
        rule = index.rest[INDEX_REST_MAX]
        problems.add(
            ("rule", rule.number, "model"),
            rule=rule.id,
            message=f"over {INDEX_REST_MAX} rules have patterns that both begin and end with a "
            'wildcard, which makes every match slow: begin them with letters, like "gpt-*"',
        )


def _too_much(text: str) -> Reading | None:
    """Refuse a text that would take too long to read, by counts that are quickly taken."""
    if len(text) > BOOK_CHARACTERS_MAX:
        return _unreadable(0, f"the text is longer than {BOOK_CHARACTERS_MAX} characters")
    for letter, what in (
        ("\n", "lines"),
        ("=", '"="'),
        (",", "commas"),
        ("[", "brackets"),
        ("\\", "backslashes"),
    ):
        if text.count(letter) > _PIECES_MAX:
            return _unreadable(0, f"the text has more than {_PIECES_MAX} {what}")
    # tomllib puts a text together escape by escape: at worst its time grows with the square.
    found = _UP_TO_LONG_TEXT.match(text)
    assert found is not None
    if (end := found.end()) < len(text):
        message = f"a text in quotes begins here that has over {_QUOTED_CHARACTERS_MAX} characters"
        line = text.count("\n", 0, end) + 1
        return _unreadable(line, f"{message}; is it closed?", end - text.rfind("\n", 0, end))
    return _too_many_dots(text)


def _too_many_dots(text: str) -> Reading | None:
    """Refuse what tomllib needs much time for, and memory: each part of a dotted key is a table."""
    most = max(line.count(".") for line in text.split("\n"))
    if most <= _DOTS_OF_A_LINE_MAX and text.count(".") <= _DOTS_MAX:
        return None
    bare = _COMMENT_OR_TEXT.sub(lambda quoted: "\n" * quoted[0].count("\n"), text)
    for number, line in enumerate(bare.split("\n"), 1):
        if line.count(".") > _DOTS_OF_A_LINE_MAX:
            message = f"the line has more than {_DOTS_OF_A_LINE_MAX} dots outside of quotes"
            return _unreadable(number, message)
    if bare.count(".") > _DOTS_MAX:
        message = f"the text has more than {_DOTS_MAX} dots outside of quotes"
        return _unreadable(0, f"{message}: are the prices in quotes?")
    return None


def _unreadable(line: int, message: str, column: int = 0) -> Reading:
    problem = Problem(level="error", line=line, column=column, rule="", field="", message=message)
    return Reading(book=None, rules=(), problems=(problem,), lines=None)


def _place_of(error: Exception, text: str) -> tuple[int, int]:
    """What tomllib names in its message only; the last line for "at end of document"."""
    found = _AT.search(str(error))
    if found:
        return int(found[1]), int(found[2])
    return (text.count("\n") + 1 if "end of document" in str(error) else 0), 0


def _header_lines(text: str) -> list[int]:
    """The lines of all [[rule]]; what looks like one inside of a long string is counted as well."""
    found: list[int] = []
    line, at = 1, 0
    for match in _HEADER.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        found.append(line)
    return found
