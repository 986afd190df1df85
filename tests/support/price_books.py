"""Price books out of Hypothesis: valid ones that use all of the rule language, and near misses."""

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from pricing_rules.hours import DAYS
from pricing_rules.rates import FEES, MINIMUM, TOKEN_CLASSES
from pricing_rules.usage import Units, Usage

HEAD = '[book]\nname = "t"\ncurrency = "USD"\ncredits_per_unit = "100"\n'

DECIMAL = st.integers(0, 9999).map(str) | st.builds(
    "{}.{:06d}".format, st.integers(0, 9999), st.integers(0, 999_999)
)
POSITIVE = st.integers(1, 9999).map(str) | st.builds(
    "{}.{:04d}".format, st.integers(1, 9999), st.integers(0, 9999)
)
FACTOR = st.integers(1, 9).map(str) | st.builds(
    "{}.{}".format, st.integers(0, 9), st.integers(1, 999)
)
TIME = st.builds("{:02d}:{:02d}".format, st.integers(0, 23), st.integers(0, 59))
ZONES = ("UTC", "Asia/Shanghai", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe")
MOMENT = st.integers(1_700_000_000_000, 1_900_000_000_000)
WORD = st.text("abcxyz-.", min_size=1, max_size=6)
PATTERN = st.sampled_from(["*", "a*", "*b", "?", "a?c*", "*mid*"]) | WORD
TOKENS = st.integers(0, 400_000)
USAGES = st.builds(Usage, **dict.fromkeys(TOKEN_CLASSES, TOKENS))
UNITS = st.builds(Units, **dict.fromkeys(Units.__struct_fields__, st.integers(0, 500)))
SERVICE_TIERS = ("priority", "flex", "on_demand", "a.b")


def moment(at: int) -> str:
    """A TOML date and time."""
    when = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at)
    return when.isoformat(timespec="milliseconds")


@st.composite
def prices(draw: st.DrawFn, *, rising: bool = False) -> list[str]:
    """The lines of a rule's prices. `rising`: no tier is cheaper than what is below it."""
    classes = {name: draw(DECIMAL) for name in draw(st.sets(st.sampled_from(TOKEN_CLASSES)))}
    classes |= {"input": draw(POSITIVE), "output": draw(DECIMAL)}
    found = [f'{name} = "{text}"' for name, text in classes.items()]
    pieces = sorted(draw(st.sets(st.sampled_from((*FEES, MINIMUM)), max_size=3)))
    found += [f'{name} = "{draw(DECIMAL)}"' for name in pieces]
    starts = draw(st.lists(st.integers(1, 300_000), max_size=3, unique=True))
    # Above every price that there is without a tier, and above the tier before.
    floor = 10_000
    tiers = []
    for start in sorted(starts):
        names = draw(st.sets(st.sampled_from(TOKEN_CLASSES), min_size=1))
        if rising:
            own = {name: str(floor) for name in names}
            floor *= 2
        else:
            own = {name: draw(DECIMAL) for name in names}
        over = draw(st.booleans())
        begin = f"over_input_tokens = {start - 1}" if over and start > 1 else ""
        begin = begin or f"from_input_tokens = {start}"
        tiers.append("{ " + ", ".join([begin, *(f'{n} = "{t}"' for n, t in own.items())]) + " }")
    if tiers:
        found.append(f"tiers = [{', '.join(draw(st.permutations(tiers)))}]")
    return found


@st.composite
def hours(draw: st.DrawFn) -> str:
    """An entry of `hours`."""
    start, end = draw(st.tuples(TIME, TIME | st.just("24:00")).filter(lambda t: t[0] != t[1]))
    days = draw(st.sampled_from([*DAYS, "Mon-Fri", "Fri-Mon", "Sat,Sun", "Mon-Wed, Fri"]))
    zone = draw(st.sampled_from(ZONES))
    parts = [f'from = "{start}"', f'to = "{end}"', f'multiply = "{draw(FACTOR)}"']
    parts += [f'days = "{days}"'] if draw(st.booleans()) else []
    parts += [f'tz = "{zone}"'] if draw(st.booleans()) else []
    return "{ " + ", ".join(parts) + " }"


@st.composite
def rule_bodies(draw: st.DrawFn, *, rising: bool = False) -> str:
    """Everything of a rule but its id, its patterns and its priority."""
    lines = draw(prices(rising=rising)) if draw(st.integers(0, 9)) else ["free = true"]
    if windows := draw(st.lists(hours(), max_size=2)):
        lines.append(f"hours = [{', '.join(windows)}]")
    if names := draw(st.sets(st.sampled_from(SERVICE_TIERS), max_size=3)):
        tiers = [f'"{name}" = "{draw(FACTOR)}"' for name in sorted(names)]
        lines.append(f"service_tiers = {{ {', '.join(tiers)} }}")
    if draw(st.booleans()):
        lines.append(f'credits_per_unit = "{draw(POSITIVE)}"')
        lines.append('currency = "CNY"')
    return "\n".join(draw(st.permutations(lines)))


@st.composite
def rule_texts(draw: st.DrawFn, number: int) -> str:
    """A [[rule]] that ties with none of another number."""
    lines = [f'id = "r{number}"', f"priority = {draw(st.integers(0, 9)) * 100 + number}"]
    lines += [f'{field} = "{draw(PATTERN)}"' for field in ("scene", "provider", "model")]
    if draw(st.booleans()):
        text = draw(st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=20))
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        lines.append(f'description = "{escaped}"')
    lines += ['status = "disabled"'] if not draw(st.integers(0, 5)) else []
    start = draw(st.none() | MOMENT)
    length = draw(st.none() | st.integers(1, 10**10))
    lines += [f"valid_from = {moment(start)}"] if start is not None else []
    if length is not None:
        lines.append(f"valid_until = {moment((start or 1_700_000_000_000) + length)}")
    return "\n".join(["[[rule]]", *draw(st.permutations(lines)), draw(rule_bodies())]) + "\n"


@st.composite
def book_texts(draw: st.DrawFn) -> list[str]:
    """A valid book: its head, and each of its rules."""
    head = HEAD
    if draw(st.booleans()):
        head += f"effective_from = {moment(draw(MOMENT))}\n"
    return [head, *(draw(rule_texts(number)) for number in range(draw(st.integers(1, 5))))]
