"""What commands print: JSON, tables, errors. Styles only on a terminal, and not with NO_COLOR or TERM=dumb."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from lmctl.errors import CommandError
from lmctl.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from lmd.protocol import ProblemRow

GAP = 2
"""Blank columns between a table's columns."""
ENOUGH = 36
"""No column leaves a narrow terminal as long as one wider than this could be folded instead."""
NARROWEST = 12
"""A column is folded to no less than this."""


@dataclass(frozen=True, slots=True)
class Column:
    """``keep``: on a narrow terminal the columns with the lowest go first; 9 never leaves.

    ``folds``: whether its cells may go on in a second line.
    """

    title: str
    keep: int = 9
    align: Literal["left", "right"] = "left"
    folds: bool = True


Row = Sequence[str]


def console(*, err: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=err, highlight=False, markup=False, emoji=False)


def print_json(value: Any) -> None:
    """One value as indented JSON with every field, also those that are at their defaults."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(whole(value)), indent=2).decode() + "\n")
    sys.stdout.flush()


def print_json_line(value: Any) -> None:
    """One value on one line, at once: for streams."""
    sys.stdout.write(msgspec.json.encode(whole(value)).decode() + "\n")
    sys.stdout.flush()


def whole(value: Any) -> Any:
    """``value`` as plain data with no field left out: the protocol omits defaults, scripts want stable keys."""
    if isinstance(value, msgspec.Struct):
        info = value.__struct_config__
        tag = {info.tag_field: info.tag} if info.tag_field else {}
        return tag | {name: whole(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [whole(item) for item in value]
    if isinstance(value, dict):
        return {key: whole(item) for key, item in value.items()}
    return value


def layout(columns: Sequence[Column], rows: Sequence[Row], width: int) -> dict[int, int]:
    """The columns shown, by index, and how wide: all where they fit, then fewer, then the widest ones narrower."""
    from rich.cells import cell_len

    natural = {
        i: max(cell_len(text) for text in (column.title, *(row[i] for row in rows))) for i, column in enumerate(columns)
    }
    # A column without a word in any row tells nothing, and costs a narrow terminal one that does.
    shown = {i: n for i, n in natural.items() if columns[i].keep == 9 or any(row[i] not in ("", "-") for row in rows)}

    for i in sorted(shown, key=lambda i: (columns[i].keep, -i)):
        if columns[i].keep == 9 or sum(min(n, ENOUGH) + GAP for n in shown.values()) - GAP <= width:
            break
        del shown[i]
    foldable = [i for i in shown if columns[i].folds and shown[i] > NARROWEST]
    for _ in range(sum(shown.values()) + GAP * (len(shown) - 1) - width):
        widest = max(foldable, key=lambda i: shown[i], default=None)
        if widest is None or shown[widest] <= NARROWEST:
            break
        shown[widest] -= 1
    return shown


def table(columns: Sequence[Column], rows: Sequence[Row], width: int) -> "RenderableType":
    """A borderless table for a terminal ``width`` cells wide."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    widths = layout(columns, rows, width)
    for i, cells in widths.items():
        # Folded at any character: a name that is cut could not be typed again.
        drawn.add_column(columns[i].title, justify=columns[i].align, overflow="fold", width=cells)
    for row in rows:
        drawn.add_row(*(Text(row[i], style=_STYLES.get(row[i].partition(" ")[0], "")) for i in widths))
    return drawn


_STYLES = {
    "ready": "green",
    "serving": "green",
    "loading": "yellow",
    "starting": "yellow",
    "draining": "yellow",
    "backoff": "red",
    "dead": "red",
    "-": "dim",
}


def print_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """On a terminal: fitted to its width. Elsewhere: every column whole, at least two blanks between two."""
    rows = [[one_line(cell) or "-" for cell in row] for row in rows]
    out = console()
    if out.is_terminal:
        out.print(table(columns, rows, out.width), crop=False)
        return
    from rich.cells import cell_len

    lines = [[column.title for column in columns], *rows]
    widths = [max(cell_len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        padded = [
            " " * (width - cell_len(cell)) + cell if column.align == "right" else cell + " " * (width - cell_len(cell))
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        print((" " * GAP).join(padded).rstrip())


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Named values, one a line; a value that does not fit goes on under itself."""
    out = console()
    if not out.is_terminal:
        for name, value in facts:
            print(f"{name}: {one_line(value)}")
        return
    from rich.table import Table
    from rich.text import Text

    drawn = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), show_header=False)
    drawn.add_column(no_wrap=True, style="bold")
    drawn.add_column(overflow="fold")
    for name, value in facts:
        shown = one_line(value)
        drawn.add_row(name, Text(shown, style=_STYLES.get(shown, "")))
    out.print(drawn)


def say(text: str) -> None:
    """A command's result in a line on standard output; a terminal's lines end between words."""
    out = console()
    out.print(one_line(text), soft_wrap=not out.is_terminal)


def note(text: str) -> None:
    """A line for a person, on standard error: never in the way of a script that reads the output."""
    out = console(err=True)
    out.print(printable(text), style="dim", soft_wrap=not out.is_terminal)


def problem_text(problem: "ProblemRow") -> str:
    """``file:line:column: key: message``, as editors and compilers write places."""
    place = ":".join([problem.file, *(str(n) for n in (problem.line, problem.column) if n)])
    return ": ".join(part for part in (place, problem.key, problem.message) if part)


def print_problems(problems: Sequence["ProblemRow"]) -> None:
    out = console(err=True)
    for problem in problems:
        out.print(printable(problem_text(problem)), style="red", soft_wrap=not out.is_terminal)


def print_error(error: CommandError, *, as_json: bool) -> None:
    """The error and what to do about it, on standard error."""
    if as_json:
        told = {
            "type": "error",
            "code": error.code,
            "message": error.message,
            "hint": error.hint,
            "problems": whole(error.problems),
        }
        print(msgspec.json.encode(told).decode(), file=sys.stderr)
        return
    from rich.text import Text

    out = console(err=True)
    # A pipe gets one line for each thing said, a person's terminal lines that end between words.
    plain = not out.is_terminal
    out.print(Text.assemble(("error: ", "bold red"), printable(error.message)), soft_wrap=plain)
    if error.problems:
        print_problems(error.problems)
    if error.hint:
        out.print(Text(printable(error.hint), style="dim"), soft_wrap=plain)
