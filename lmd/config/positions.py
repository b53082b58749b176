"""Where each key of a TOML document stands (tomllib does not tell).

`locate` reads text that tomllib has accepted, so it only has to find the ends of things. Grammar: https://toml.io/en/v1.0.0
"""

import re
import tomllib
from bisect import bisect_right
from typing import NamedTuple

Loc = tuple[str | int, ...]
"""A place in the document's data: keys, and indices in arrays (also in arrays of tables)."""


class Position(NamedTuple):
    """Counted from 1; columns in characters."""

    line: int
    column: int


_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_BARE_VALUE = re.compile(r"[^,\]}#\n]*")
_STRINGS = (
    # A multi-line string may end in up to two quotes of its own before the three that close it.
    re.compile(r'"""(?:\\.|[^\\])*?"""(?:""?(?!"))?', re.DOTALL),
    re.compile(r"'''.*?'''(?:''?(?!'))?", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)


def locate(text: str) -> dict[Loc, Position]:
    """The position of every key, table and array element in ``text``, which must be valid TOML."""
    return _Scanner(text).run()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines = [0, *(match.end() for match in re.finditer("\n", text))]
        self.found: dict[Loc, Position] = {}
        self.last_element: dict[Loc, int] = {}
        """Array of tables → index of its newest element, to which headers below it belong."""

    def run(self) -> dict[Loc, Position]:
        table: Loc = ()
        while not self.blank_to_end():
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)
        return self.found

    def blank_to_end(self) -> bool:
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at >= len(self.text)

    def position(self, at: int) -> Position:
        line = bisect_right(self.lines, at)
        return Position(line, at - self.lines[line - 1] + 1)

    def header(self) -> Loc:
        is_array = self.text.startswith("[[", self.at)
        start = self.at
        self.at += 2 if is_array else 1
        parts = self.key()
        self.at += 2 if is_array else 1
        loc: Loc = ()
        for index, (part, _) in enumerate(parts):
            loc += (part,)
            if is_array and index == len(parts) - 1:
                self.found.setdefault(loc, self.position(start))
                self.last_element[loc] = self.last_element.get(loc, -1) + 1
            if loc in self.last_element:
                loc += (self.last_element[loc],)
            if index < len(parts) - 1:
                self.found.setdefault(loc, self.position(start))
        # The table's own header beats a mention of it in a header above.
        self.found[loc] = self.position(start)
        return loc

    def pair(self, table: Loc) -> None:
        loc = table
        parts = self.key()
        for part, position in parts:
            loc += (part,)
            self.found.setdefault(loc, position)
        # A dotted key is where its line says it, which is where its first part stands.
        self.found[loc] = parts[0][1]
        self.at += 1  # "="
        self.value(loc)

    def key(self) -> list[tuple[str, Position]]:
        """A dotted key and the blanks around it; stops at "=" or "]"."""
        parts = []
        while True:
            self.blank_to_end()
            start = self.at
            if match := _BARE_KEY.match(self.text, self.at):
                name, self.at = match[0], match.end()
            else:
                self.string()
                (name,) = tomllib.loads(f"{self.text[start : self.at]} = 0")
            parts.append((name, self.position(start)))
            self.blank_to_end()
            if self.text[self.at] != ".":
                return parts
            self.at += 1

    def string(self) -> None:
        for pattern in _STRINGS:
            if match := pattern.match(self.text, self.at):
                self.at = match.end()
                return
        raise ValueError(f"no TOML string at {self.position(self.at)}")

    def value(self, loc: Loc) -> None:
        self.blank_to_end()
        match self.text[self.at]:
            case '"' | "'":
                self.string()
            case "[":
                self.array(loc)
            case "{":
                self.inline_table(loc)
            case _ if match := _BARE_VALUE.match(self.text, self.at):
                self.at = match.end()

    def array(self, loc: Loc) -> None:
        self.at += 1
        index = 0
        while not self.blank_to_end() and self.text[self.at] != "]":
            self.found[*loc, index] = self.position(self.at)
            self.value((*loc, index))
            index += 1
            self.comma()
        self.at += 1

    def inline_table(self, loc: Loc) -> None:
        self.at += 1
        while not self.blank_to_end() and self.text[self.at] != "}":
            self.pair(loc)
            self.comma()
        self.at += 1

    def comma(self) -> None:
        if not self.blank_to_end() and self.text[self.at] == ",":
            self.at += 1
