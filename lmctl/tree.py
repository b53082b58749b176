"""lmctl's commands as values, read from their own declaration: what completion scripts and man pages are made of."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import typer


@dataclass(frozen=True, slots=True)
class Option:
    names: tuple[str, ...]
    help: str
    metavar: str = ""
    """Of its value; "" for a flag."""
    multiple: bool = False


@dataclass(frozen=True, slots=True)
class Argument:
    metavar: str
    help: str
    required: bool
    multiple: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    path: tuple[str, ...]
    """Words after ``lmctl``; none for itself."""
    help: str
    epilog: str
    options: tuple[Option, ...]
    arguments: tuple[Argument, ...]
    children: tuple["Command", ...]

    def walk(self) -> Iterator["Command"]:
        """This command and all below it."""
        yield self
        for child in self.children:
            yield from child.walk()


def commands() -> Command:
    """lmctl and all its commands but the hidden ones."""
    from lmctl.cli import app

    return _command(typer.main.get_command(app), ())


def _command(declared: Any, path: tuple[str, ...]) -> Command:
    # Any: typer's classes are click's or copies of them, as its version has it; what they tell is the same.
    options, arguments = [], []
    for param in declared.params:
        if param.param_type_name == "argument":
            metavar = (param.metavar or param.name).removesuffix("...")
            arguments.append(Argument(metavar, param.help or "", param.required, param.nargs == -1))
        elif not param.hidden:
            metavar = "" if param.is_flag else param.metavar or "TEXT"
            help_ = " ".join((param.help or "").split())
            # Where the help does not tell the default in words of its own.
            if param.default not in (None, False) and "[default" not in help_:
                help_ += f"  [default: {param.default}]"
            options.append(Option((*param.opts, *param.secondary_opts), help_, metavar, param.multiple))
    options.append(Option(("-h", "--help"), "Show this help and exit."))
    inner = getattr(declared, "commands", {})
    children = tuple(_command(one, (*path, name)) for name, one in inner.items() if not one.hidden)
    help_ = " ".join((declared.help or "").split())
    return Command(path, help_, declared.epilog or "", tuple(options), tuple(arguments), children)
