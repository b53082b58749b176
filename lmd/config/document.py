"""A TOML file that was read: its data, where each key stands, and what identifies its content."""

import hashlib
import os
import re
import stat
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmd.config.positions import Loc, Position, locate
from lmd.errors import ConfigError, Problem

MAX_FILE = 1024 * 1024
"""Bytes. Nobody writes a longer preset; what is longer is the wrong file."""


@dataclass(frozen=True, slots=True, eq=False)
class Document:
    path: Path
    text: str
    digest: str
    table: dict[str, Any]
    positions: dict[Loc, Position]

    def position(self, loc: Loc) -> Position:
        """Where ``loc`` stands, or the nearest thing around it that has a place; line 1 for the whole file."""
        for length in range(len(loc), 0, -1):
            if found := self.positions.get(loc[:length]):
                return found
        return Position(1, 1)

    def problem(self, loc: Loc, message: str) -> Problem:
        line, column = self.position(loc)
        return Problem(printable(self.path), message, key=dotted(loc), line=line, column=column)

    def origin(self, loc: Loc) -> str:
        return f"{printable(self.path)}:{self.position(loc).line}"


def dotted(loc: Loc) -> str:
    """``load.parallel``, ``aliases[2]``, ``chat.template_args."odd key"``."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"')
    return text


def printable(text: object) -> str:
    """``str(text)`` with what is no text in it (odd bytes of file names, control characters) written as escapes."""
    escaped = str(text).encode("utf-8", "backslashreplace").decode()
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in escaped)


def read_text(path: Path) -> str:
    """The text of a regular file of at most MAX_FILE bytes of UTF-8. Raises ConfigError with one problem."""

    def wrong(message: str) -> ConfigError:
        return ConfigError([Problem(printable(path), message)])

    try:
        # O_NONBLOCK: a FIFO of that name must not hold up the daemon.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise wrong("this is not a regular file")
            with os.fdopen(fd, "rb", closefd=False) as file:
                data = file.read(MAX_FILE + 1)
        finally:
            os.close(fd)
    except OSError as exc:
        raise wrong(f"cannot be read: {(exc.strerror or str(exc)).lower()}") from exc
    except ValueError as exc:
        raise wrong(f"is no path: {exc}") from exc
    if len(data) > MAX_FILE:
        raise wrong(f"is longer than {MAX_FILE // 1024} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise ConfigError([Problem(printable(path), f"is not UTF-8 text: {exc.reason}", line=line)]) from exc


def digest_of(*texts: str) -> str:
    """Equal for equal texts in equal order."""
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def parse_document(path: Path, text: str) -> Document:
    """Raises ConfigError with one problem when ``text`` is no TOML."""
    try:
        table = tomllib.loads(text)
        positions = locate(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError([_syntax_problem(path, text, str(exc))]) from exc
    except (ValueError, RecursionError) as exc:
        reason = "its arrays and tables are nested too deep" if isinstance(exc, RecursionError) else str(exc)
        raise ConfigError([Problem(printable(path), f"cannot be read as TOML: {reason}")]) from exc
    return Document(path, text, digest_of(text), table, positions)


def read_document(path: Path) -> Document:
    """Raises ConfigError with one problem when the file cannot be read or is no TOML."""
    return parse_document(path, read_text(path))


def _syntax_problem(path: Path, text: str, message: str) -> Problem:
    # The wording is CPython's, the same from 3.11 to 3.14.
    said = re.fullmatch(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", message, re.DOTALL)
    if said is None:
        return Problem(printable(path), f"TOML syntax: {message}")
    if said[2]:
        line, column = int(said[2]), int(said[3])
    else:
        line, column = text.count("\n") + 1, len(text) - (text.rfind("\n") + 1) + 1
    return Problem(printable(path), f"TOML syntax: {said[1][:1].lower()}{said[1][1:]}", line=line, column=column)
