"""Text that arrives in pieces, read by generators that wait for more.

A parser written over `TextStream` is a plain recursive-descent parser whose reads are ``yield from``: whenever a
decision needs text that is not there yet, the generator pauses. So what comes out depends only on the
whole text, never on where it was cut.
"""

import re
from collections.abc import Generator, Sequence
from functools import lru_cache

Wait = Generator[None, None, None]


class Malformed(Exception):
    """What was read is not what it began to be; the reader's caller gives it back as text."""


@lru_cache(maxsize=1024)
def _pattern(markers: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)))


class TextStream:
    """A buffer with a reading position. ``keep`` pins text from there on, so that a reader can go back to it."""

    def __init__(self) -> None:
        self.text = ""
        self.pos = 0
        self.closed = False
        self.keep: int | None = None

    def append(self, text: str) -> None:
        drop = self.pos if self.keep is None else min(self.keep, self.pos)
        if drop > 4096:
            self.text = self.text[drop:]
            self.pos -= drop
            if self.keep is not None:
                self.keep -= drop
        self.text += text

    def wait(self) -> Generator[None, None, bool]:
        """Pause for more text; False once there will be none."""
        if self.closed:
            return False
        size = len(self.text) - self.pos
        while len(self.text) - self.pos == size and not self.closed:
            yield
        return len(self.text) - self.pos > size

    def peek(self) -> Generator[None, None, str]:
        """The next character, not consumed; "" at the end."""
        while self.pos >= len(self.text):
            if not (yield from self.wait()):
                return ""
        return self.text[self.pos]

    def blanks(self) -> Generator[None, None, str]:
        """Skip blanks; the next character, "" at the end."""
        while (char := (yield from self.peek())) and char.isspace():
            self.pos += 1
        return char

    def at(self, literal: str) -> Generator[None, None, bool]:
        """Whether ``literal`` comes next; consumes nothing."""
        while True:
            rest = self.text[self.pos : self.pos + len(literal)]
            if rest == literal:
                return True
            if not literal.startswith(rest):
                return False
            if not (yield from self.wait()):
                return False

    def take(self, literal: str) -> Generator[None, None, bool]:
        """Consume ``literal`` if it comes next."""
        if literal and (yield from self.at(literal)):
            self.pos += len(literal)
            return True
        return False

    def take_loosely(self, marker: str) -> Generator[None, None, bool]:
        """Consume ``marker`` with any blanks where it has blanks, and before it. At the end of the text a part will do.

        `Malformed` when its beginning comes next and something else follows.
        """
        for i, word in enumerate(marker.split()):
            if not (yield from self.blanks()):
                return i > 0
            if not (yield from self.take(word)):
                if i and not self.closed:
                    raise Malformed
                return False
        return True

    def until(self, markers: Sequence[str], limit: int = 0) -> Generator[None, None, tuple[str, str]]:
        """Consume up to and with the first of ``markers`` (the longest where several begin there).

        Returns the text before it and the marker. `Malformed` at the end of the text, or beyond ``limit`` characters.
        """
        markers = tuple(markers)
        longest = max(map(len, markers))
        scanned = 0
        while True:
            match = first_of(markers, self.text, self.pos + scanned)
            if match is not None:
                if (yield from self._longer_may_come(match, markers)):
                    continue
                before = self.text[self.pos : match.start()]
                if limit and len(before) > limit:
                    raise Malformed
                self.pos += len(before) + len(match.group())
                return before, match.group()
            size = len(self.text) - self.pos
            if limit and size > limit + longest:
                raise Malformed
            scanned = max(0, size - longest + 1)
            if not (yield from self.wait()):
                raise Malformed

    def _longer_may_come(self, match: re.Match[str], markers: Sequence[str]) -> Generator[None, None, bool]:
        rest = self.text[match.start() :]
        if any(len(marker) > len(rest) and marker.startswith(rest) for marker in markers):
            return (yield from self.wait())
        return False


def held_back(text: str, markers: tuple[str, ...]) -> int:
    """How many characters at the end of ``text`` may be the beginning of a marker, blanks before it included."""
    beginnings, longest = _beginnings(markers)
    size = min(longest, len(text))
    while size and text[-size:] not in beginnings:
        size -= 1
    body = text[:-size] if size else text
    return size + len(body) - len(body.rstrip())


@lru_cache(maxsize=1024)
def _beginnings(markers: tuple[str, ...]) -> tuple[frozenset[str], int]:
    """Every beginning of a marker that is not the whole of it, and the longest one's length: asked for each token."""
    found = frozenset(marker[:size] for marker in markers for size in range(1, len(marker)))
    return found, max(map(len, found), default=0)


@lru_cache(maxsize=1024)
def beginning_of(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Finds any character that one of ``markers`` begins with."""
    firsts = sorted({marker[0] for marker in markers})
    return re.compile("|".join(map(re.escape, firsts)) or "(?!)")


def first_of(markers: tuple[str, ...], text: str, start: int = 0) -> re.Match[str] | None:
    """The first of ``markers`` in ``text`` from ``start`` on, the longest where several begin there."""
    return _pattern(markers).search(text, start) if markers else None
