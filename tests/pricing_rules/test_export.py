"""A book written out as TOML says what the uploaded one did, readably."""

from pricing_rules.book import parse_book
from pricing_rules.export import dump_book

TEXT = """\
[book]
name = "a \\"book\\" \\\\ 模"
currency = "USD"
credits_per_unit = "100"
effective_from = 2026-12-01T00:00:00.250Z

[[rule]]
id = "all"
description = "list"
scene = "agent"
provider = "p"
model = "m*"
priority = -3
status = "disabled"
valid_from = 2026-01-01T00:00:00Z
valid_until = 2027-01-01T00:00:00Z
currency = "CNY"
credits_per_unit = "100"
input = "2.50"
cached_input = "1"
cache_write_5m = "3"
cache_write_1h = "4"
audio_input = "5"
image_input = "6"
output = "10"
reasoning = "11"
audio_output = "12"
per_call = "0.1"
per_image = "0.2"
per_second = "0.3"
per_character = "0.004"
per_search = "0.5"
minimum_charge = "0.01"
tiers = [
    { over_input_tokens = 200000, input = "5.00", output = "20" },
    { from_input_tokens = 100, cached_input = "2" },
]
hours = [
    { days = "Mon-Fri", tz = "Asia/Shanghai", from = "22:00", to = "04:00", multiply = "1.50" },
]
service_tiers = { priority = "1.7", "a.b" = "0.5" }

[[rule]]
id = "free"
scene = "*"
provider = "p"
model = "m"
free = true
"""


def test_a_book_is_written_as_it_was() -> None:
    assert dump_book(parse_book(TEXT)) == TEXT


def test_comments_and_defaults_are_left_out() -> None:
    text = TEXT.replace("free = true\n", 'free = true\npriority = 0\nstatus = "active"\n')
    text = text.replace('tz = "Asia/Shanghai", ', "").replace("[book]\n", "# comment\n[book]\n")
    assert dump_book(parse_book(text)) == TEXT.replace("Asia/Shanghai", "UTC")
