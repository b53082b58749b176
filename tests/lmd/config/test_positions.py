import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import tomlkit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd.config.positions import Loc, locate


def locs(data: Any, at: Loc = ()) -> Iterator[Loc]:
    """Every place in the data."""
    if isinstance(data, dict):
        inner = list(data.items())
    elif isinstance(data, list):
        inner = list(enumerate(data))
    else:
        return
    for key, value in inner:
        yield (*at, key)
        yield from locs(value, (*at, key))


CASES = {
    "plain": ('a = 1\n\nb = "x" # c = 3\n', {("a",): (1, 1), ("b",): (3, 1)}),
    "indented": ("\t  a = 1", {("a",): (1, 4)}),
    "crlf": ("a = 1\r\n\r\n  b = 2\r\n", {("b",): (3, 3)}),
    "table": ("# top\n[load]\nparallel = 4\n", {("load",): (2, 1), ("load", "parallel"): (3, 1)}),
    "dotted key": ("a.b . c = 1\na.d = 2", {("a",): (1, 1), ("a", "b", "c"): (1, 1), ("a", "d"): (2, 1)}),
    "dotted header": ("[ a . b ]\nc = 1", {("a",): (1, 1), ("a", "b"): (1, 1), ("a", "b", "c"): (2, 1)}),
    "header after its child": ("[a.b]\nx = 1\n[a]\ny = 2\n", {("a",): (3, 1), ("a", "b"): (1, 1), ("a", "y"): (4, 1)}),
    "inline table": (
        "t = { x = 1, y.z = [2,\n 3] }",
        {("t", "x"): (1, 7), ("t", "y", "z"): (1, 14), ("t", "y", "z", 1): (2, 2)},
    ),
    "quoted keys": ('"a.b".\'c d\' = 1\n"\\u0041" = 2', {("a.b", "c d"): (1, 1), ("A",): (2, 1)}),
    "array over lines": (
        "s = [\n  'a', # x, ]\n  'b',\n]\nz = 1",
        {("s", 0): (2, 3), ("s", 1): (3, 3), ("z",): (5, 1)},
    ),
    "array of tables": (
        "[[t]]\nx = 1\n[[t]]\nx = 2\n[t.sub]\ny = 3\n[[t.more]]\nz = 4\n[[t.more]]\nz = 5\n",
        {
            ("t",): (1, 1),
            ("t", 0, "x"): (2, 1),
            ("t", 1): (3, 1),
            ("t", 1, "x"): (4, 1),
            ("t", 1, "sub", "y"): (6, 1),
            ("t", 1, "more", 1, "z"): (10, 1),
        },
    ),
    "multi-line basic string": ('a = """\nb = 1\n[c]\n\\""" still \\\\"""\nd = 1', {("d",): (5, 1)}),
    "multi-line literal string": ("a = '''\nb = 1\n# '' x\n'''\nd = 1", {("d",): (5, 1)}),
    "quotes before the closing three": (
        "a = \"\"\"x\"\"\"\"\"\nb = '''y'''''\nc = \"\"\"\"\"\"\nd = ''''''\ne = 1",
        {("e",): (5, 1)},
    ),
    "strings that look like structure": ('a = "] } # \\" = "\nb = \'[x] = \\\'\nc = 1', {("c",): (3, 1)}),
    "dates and numbers": ("a = 1979-05-27 07:32:00Z # x\nb = +1_000.5e-3\nc = inf", {("b",): (2, 1), ("c",): (3, 1)}),
    "wide characters": ('"ключ" = "ü"\nb = { "ö" = "日本", c = 1 }', {("ключ",): (1, 1), ("b", "c"): (2, 19)}),
}


@pytest.mark.parametrize("name", CASES)
def test_each_key_is_where_it_stands(name: str) -> None:
    text, expected = CASES[name]
    found = locate(text)
    assert set(found) == set(locs(tomllib.loads(text)))
    assert {loc: tuple(found[loc]) for loc in expected} == expected


# Keys end in a number of their own, so that the line of each can be looked up in the text.
key_texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\x7f"), max_size=6)
scalars = (
    st.integers(-(2**63), 2**63 - 1)
    | st.booleans()
    | st.floats(allow_nan=False)
    | st.dates()
    | st.datetimes()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from(["[a]", "x = 1", '"""', "'''", "# no", "]}", "\\", '\\"', "a\nb\n[c]\n", "= = ="])
)
trees = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(st.lists(st.tuples(key_texts, inner), max_size=3), min_size=1, max_size=3)
        | st.lists(st.tuples(key_texts, inner), max_size=4)
    ),
    max_leaves=20,
)


def written(tree: Any, numbers: Iterator[int], *, inline: bool = False) -> Any:
    """The tree as tomlkit objects: lists of pairs are tables, with numbered keys."""
    if isinstance(tree, list) and tree and all(isinstance(item, tuple) for item in tree):
        table = tomlkit.inline_table() if inline else tomlkit.table()
        for text, value in tree:
            number = next(numbers)
            table[f"{text}<{number}>"] = written(value, numbers, inline=inline or number % 5 == 0)
        return table
    if isinstance(tree, list):
        items = [written(item, numbers, inline=True) for item in tree]
        array = tomlkit.array()
        for item in items:
            array.append(item)
        return array.multiline(len(items) % 2 == 1)
    if isinstance(tree, str) and len(tree) % 2 and not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", tree):
        return tomlkit.string(tree, multiline=True)
    return tree


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(key_texts, trees), max_size=6))
def test_every_key_that_tomlkit_writes_is_found_on_its_line(pairs: list[tuple[str, Any]]) -> None:
    document = tomlkit.document()
    numbers = iter(range(10_000))
    for text, value in pairs:
        document[f"{text}<{next(numbers)}>"] = written(value, numbers)
    text = tomlkit.dumps(document)
    data = tomllib.loads(text)
    found = locate(text)
    assert set(found) == set(locs(data))
    lines = text.split("\n")
    for loc, (line, column) in found.items():
        if isinstance(loc[-1], str):
            mark = loc[-1][loc[-1].rindex("<") :]
            assert mark in lines[line - 1][column - 1 :]


# tomlkit never writes dotted keys in inline tables, odd blanks, or comments between array items; this does.
blanks = st.sampled_from(["", " ", "\t "])
gaps = st.sampled_from(["", " ", "\n", ' # ] } = "\n', "\r\n\t"])
raw_keys = st.sampled_from(["a", "b-1", "c_2", '"q.k"', "'l k'", '"\\u00e9\\""', "7"])
raw_scalars = st.sampled_from(
    [
        "1",
        "-0.5",
        "true",
        '""',
        "''",
        '"x\\"]"',
        "'}#'",
        '"""a\n"" b"""',
        '""""""',
        '"""x"""""',
        "'''\n'x' '''",
        "'''y''''",
        "1979-05-27",
        "1979-05-27 07:32:00",
        "07:32:00",
        "nan",
        "[]",
        "{}",
        '"""\\\n  z"""',
    ]
)


@st.composite
def raw_values(draw: st.DrawFn, depth: int = 2) -> str:
    kind = draw(st.integers(0, 3 if depth else 1))
    if kind < 2:
        return draw(raw_scalars)
    items = draw(st.lists(raw_values(depth - 1), max_size=3))
    if kind == 2:
        body = ",".join(f"{draw(gaps)}{item}{draw(gaps)}" for item in items)
        return f"[{body}{',' if items and draw(st.booleans()) else ''}{draw(gaps)}]"
    return "{" + ",".join(f"{draw(blanks)}{draw(dotted())}={draw(blanks)}{item}{draw(blanks)}" for item in items) + "}"


@st.composite
def dotted(draw: st.DrawFn) -> str:
    return f"{draw(blanks)}.{draw(blanks)}".join(draw(st.lists(raw_keys, min_size=1, max_size=3)))


@st.composite
def raw_lines(draw: st.DrawFn) -> str:
    match draw(st.integers(0, 4)):
        case 0:
            return f"[{draw(blanks)}{draw(dotted())}{draw(blanks)}] # ["
        case 1:
            return f"[[{draw(dotted())}]]"
        case _:
            return (
                f"{draw(blanks)}{draw(dotted())}{draw(blanks)}={draw(blanks)}{draw(raw_values())}{draw(blanks)}# x = 1"
            )


@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much], deadline=None)
@given(st.lists(raw_lines(), max_size=8))
def test_whatever_tomllib_reads_has_a_position_for_each_place_and_no_other(lines: list[str]) -> None:
    kept: list[str] = []
    for line in lines:
        # A line that contradicts an earlier one is left out, so that most examples are documents.
        try:
            tomllib.loads("\n".join([*kept, line]))
        except tomllib.TOMLDecodeError:
            continue
        kept.append(line)
    text = "\n".join(kept)
    assert set(locate(text)) == set(locs(tomllib.loads(text)))
