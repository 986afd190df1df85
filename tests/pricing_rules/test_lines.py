"""Keys are found on their lines, whatever stands between them."""

import tomllib

from hypothesis import given
from hypothesis import strategies as st

from pricing_rules.lines import Lines

TRICKY = '''\
# [book] in a comment = 1
title = "x # no comment [[rule]]"

[book]  # comment with "quotes
name = """
[[rule]]
id = "not a rule"
"""
dotted.key = 1
"quoted key" = \'\'\'
[book]\'\'\'
list = [
  "]", # ]
  [1, 2],
  { a = 1, b = "}" },
]
tail = 1.5

[[rule]]
id = "one"
'literal' = 1979-05-27 07:32:00
odd = """a""""
after = 1
[rule.sub]
x = 1
[[ rule ]]
id = 'two'
"escaped\\u0041" = "\\"# ["
[[rule.tiers]]
over = 1
[last]
end = true'''


def test_each_key_is_found_on_its_line() -> None:
    tomllib.loads(TRICKY)
    lines = Lines(TRICKY)
    wanted = TRICKY.split("\n")

    def at(*path: str | int) -> str:
        return wanted[lines.of(*path) - 1]

    assert at("title").startswith("title")
    assert at("book").startswith("[book]")
    assert at("book", "name") == 'name = """'
    assert at("book", "dotted") == at("book", "dotted", "key") == "dotted.key = 1"
    assert at("book", "quoted key").startswith('"quoted key"')
    assert at("book", "list") == "list = ["
    assert at("book", "tail") == "tail = 1.5"
    assert at("rule", 0) == "[[rule]]"
    assert at("rule", 0, "id") == 'id = "one"'
    assert at("rule", 0, "literal").startswith("'literal'")
    assert at("rule", 0, "after") == "after = 1"
    assert at("rule", 0, "sub") == "[rule.sub]"
    assert at("rule", 0, "sub", "x") == "x = 1"
    assert at("rule", 1) == "[[ rule ]]"
    assert at("rule", 1, "id") == "id = 'two'"
    assert at("rule", 1, "escapedA").startswith('"escaped')
    assert at("rule", 1, "tiers") == "[[rule.tiers]]"
    assert at("last", "end") == "end = true"


def test_a_missing_key_is_at_what_contains_it() -> None:
    lines = Lines("[[rule]]\nid = 1\n\n[[rule]]\nid = 2\n")
    assert lines.of("rule", 1, "model") == 4
    assert lines.of("rule", 7, "model") == 1
    assert lines.of("book", "name") == 0


def test_rules_in_one_inline_list_are_at_its_line() -> None:
    text = '\nrule = [{ id = "a" }, { id = "b" }]\nbook = { name = "x" }\n'
    lines = Lines(text)
    assert lines.of("rule", 1, "id") == 2
    assert lines.of("book", "name") == 3
    assert lines.spot("rule", 0, "id") == (2, 11)
    assert lines.spot("rule", 1, "id") == (2, 25)
    assert lines.spot("rule", 1) == (2, 23)
    assert lines.spot("book", "name") == (3, 10)
    assert lines.spot("nowhere") == (0, 0)


def test_keys_inside_of_values_have_a_line_and_a_column() -> None:
    text = """\
[[rule]]
  id = "a"  # { x = 1 }
tiers = [
    { over = 1.5, "in, put" = "]" },  # ,
    {
      over.sub = [1, { deep = 1, next = 2 }, 3], when = 2026-01-01 07:00:00 },
]
last = 1
[[rule]]
[[rule.tiers]]
x = 1
[[rule.tiers]]
x = { y = { z = 1 } }
[rule.service]
"a.b" = 1
"""
    tomllib.loads(text.replace("\n      over.sub", " over.sub").replace("00 },", "00 },"))
    lines = Lines(text)
    assert lines.spot("rule", 0, "id") == (2, 3)
    assert lines.spot("rule", 0, "tiers") == (3, 1)
    assert lines.spot("rule", 0, "tiers", 0) == (4, 5)
    assert lines.spot("rule", 0, "tiers", 0, "over") == (4, 7)
    assert lines.spot("rule", 0, "tiers", 0, "in, put") == (4, 19)
    assert lines.spot("rule", 0, "tiers", 1, "over", "sub", 1, "next") == (6, 34)
    assert lines.spot("rule", 0, "tiers", 1, "when") == (6, 50)
    assert lines.spot("rule", 0, "tiers", 2) == (3, 1)
    assert lines.spot("rule", 0, "last") == (8, 1)
    assert lines.spot("rule", 1, "tiers") == (10, 1)
    assert lines.spot("rule", 1, "tiers", 0, "x") == (11, 1)
    assert lines.spot("rule", 1, "tiers", 1, "x", "y", "z") == (13, 13)
    assert lines.spot("rule", 1, "service", "a.b") == (15, 1)


VALUES = st.sampled_from(
    ['"a"', '"""\n[[rule]]\n"""', "'''\n\n# '''", "[\n 1,\n]", "1.5", '"#"', "{ x = [1] }"]
)


@given(st.lists(st.lists(st.tuples(st.sampled_from(["", "# c\n", "\n\n"]), VALUES), max_size=4)))
def test_lines_agree_with_how_the_text_was_written(rules: list[list[tuple[str, str]]]) -> None:
    text = ""
    expected: dict[tuple[str | int, ...], int] = {}
    for number, keys in enumerate(rules):
        expected["rule", number] = text.count("\n") + 1
        text += "[[rule]]\n"
        for index, (before, value) in enumerate(keys):
            text += before
            expected["rule", number, f"k{index}"] = text.count("\n") + 1
            text += f"k{index} = {value}  # end\n"
    tomllib.loads(text)
    lines = Lines(text)
    assert {path: lines.of(*path) for path in expected} == expected
