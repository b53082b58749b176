"""Write the man pages: ``python packaging/man/generate.py DIRECTORY``. All of it comes from the code's own words.

Commands and flags are read from lmctl's and lmd's declarations, settings from their schema with its docstrings.
The language is roff with the macros of man(7).
"""

import ast
import inspect
import json
import math
import re
import sys
import textwrap
from collections.abc import Collection, Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel

from lmctl.tree import Command, commands
from lmd.__main__ import parser
from lmd.config.preset import SCHEMA, ChatSettings, Preset
from lmd.config.schema import members
from lmd.config.settings import Settings
from lmd.config.units import Duration, Size, format_size
from lmd.protocol import format_duration

SEE_ALSO = ("lmd(8)", "lmctl(1)", "lmd.toml(5)", "lmd-preset(5)")


# ── roff ──────────────────────────────────────────────────────────────────────────────────────


def plain(text: str) -> str:
    """``text`` so that roff takes it for text: dashes that can be copied, backslashes, no commands."""
    text = (
        text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha").replace("~", "\\(ti").replace("`", "\\(ga")
    )
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def prose(text: str) -> str:
    """A docstring's text: what stands in backticks is bold."""
    parts = re.split(r"``(.+?)``|`(.+?)`", " ".join(text.split()))
    said = ""
    for index, part in enumerate(parts):
        if part:
            said += plain(part) if index % 3 == 0 else f"\\fB{plain(part)}\\fR"
    return re.sub(r"^(?=[.'])", r"\\&", said)


def title(name: str, section: int, what: str) -> list[str]:
    return [
        '.\\" Made by packaging/man/generate.py: do not edit.',
        f'.TH {plain(name.upper())} {section} "" "lmd"',
        ".SH NAME",
        f"{plain(name)} \\- {prose(what)}",
    ]


def see_also(own: str) -> list[str]:
    others = [page for page in SEE_ALSO if page != own]
    told = ",\n".join(f".BR {plain(name)} ({section[0]})" for name, section in (page.split("(") for page in others))
    return [".SH SEE ALSO", told.replace(",\n", " ,\n")]


def tagged(tag: str, text: str) -> list[str]:
    """``tag`` is roff already."""
    return [".TP", tag, prose(text) or "\\&"]


# ── commands ──────────────────────────────────────────────────────────────────────────────────


def lmctl_page(root: Command) -> str:
    lines = title("lmctl", 1, "steer lmd, the daemon that serves local language models")
    lines += [".SH SYNOPSIS", ".B lmctl", "[options]", ".I command", "[arguments]"]
    lines += [".SH DESCRIPTION", prose(root.help), ".SH OPTIONS", *options(root)]
    lines += [".SH COMMANDS"]
    own = {option.names for option in root.options} - {("--version",)}
    for command in root.walk():
        if not command.path:
            continue
        name = " ".join(("lmctl", *command.path))
        lines += [f".SS {plain(name)}", prose(command.help)]
        if command.children:
            continue
        usage = [f"\\fB{plain(name)}\\fR", "[options]"]
        for argument in command.arguments:
            word = f"\\fI{plain(argument.metavar)}\\fR" + ("..." if argument.multiple else "")
            usage.append(word if argument.required else f"[{word}]")
        lines += [".PP", " ".join(usage)]
        for argument in command.arguments:
            lines += tagged(f"\\fI{plain(argument.metavar)}\\fR", argument.help)
        lines += options(command, without=own)
    lines += [".SH EXIT STATUS", prose(root.epilog.removeprefix("Exit codes:").strip())]
    lines += [".SH ENVIRONMENT", *tagged("\\fBLMD_SOCKET\\fR", "The control socket to use.")]
    lines += tagged("\\fBNO_COLOR\\fR", "Whatever its value: no colours.")
    return page(lines, "lmctl(1)")


def options(command: Command, without: Collection[tuple[str, ...]] = ()) -> list[str]:
    lines = []
    for option in command.options:
        if option.names in without:
            continue
        tag = ", ".join(f"\\fB{plain(name)}\\fR" for name in option.names)
        lines += tagged(tag + (f" \\fI{plain(option.metavar)}\\fR" if option.metavar else ""), option.help)
    return lines


def lmd_page() -> str:
    declared = parser()
    lines = title("lmd", 8, "serve local GGUF language models over HTTP")
    lines += [".SH SYNOPSIS", ".B lmd", "[options]", ".SH DESCRIPTION", prose(declared.description or "")]
    lines += [".SH OPTIONS"]
    for action in declared._actions:
        tag = ", ".join(f"\\fB{plain(name)}\\fR" for name in action.option_strings)
        tag += f" \\fI{plain(str(action.metavar))}\\fR" if action.metavar else ""
        lines += tagged(tag, action.help or "")
    lines += [".SH SIGNALS"]
    lines += tagged("\\fBSIGTERM\\fR, \\fBSIGINT\\fR", "Take no new requests, let the open ones end, and stop.")
    lines += tagged("\\fBSIGHUP\\fR", "Read lmd.toml and the presets anew.")
    lines += [".SH FILES", *tagged("\\fI/etc/lmd/lmd.toml\\fR", "The settings.")]
    lines += tagged("\\fI/etc/lmd/presets.d\\fR", "The presets.")
    return page(lines, "lmd(8)")


# ── settings ──────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    type: Any
    default: Any
    text: str


def keys(schema: Any, *more: Any) -> Iterator[Key]:
    """The keys of one table; ``more``: classes whose docstrings tell what the schema's own do not."""
    texts: dict[str, str] = {}
    for source in (*reversed(more), schema):
        texts |= docstrings(source)
    for name, kind in members(schema).items():
        yield Key(name, kind, default_of(schema, name), texts.get(name, ""))


@cache
def docstrings(source: type) -> dict[str, str]:
    """The texts that stand below a class's attributes."""
    body = ast.parse(textwrap.dedent(inspect.getsource(source))).body[0].body  # type: ignore[attr-defined]
    told = {}
    for line, below in pairwise(body):
        if isinstance(line, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            told[ast.unparse(line.target)] = str(below.value.value)
    return told


def default_of(schema: Any, name: str) -> Any:
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return schema.model_fields[name].default
    if is_dataclass(schema):
        (found,) = (field.default for field in fields(schema) if field.name == name)
        return None if found is MISSING else found
    return None


def type_text(kind: Any) -> str:
    """A key's type and bounds in words."""
    if get_origin(kind) is Annotated:
        base, *metadata = get_args(kind)
        units = [(Duration, 'duration (seconds, or "90s", "1h30m", "never")'), (Size, 'size (bytes, or "512MiB")')]
        said = next((text for unit, text in units if set(get_args(unit)[1:]) & set(metadata)), type_text(base))
        words = ((Ge, "ge", "at least"), (Gt, "gt", "more than"), (Le, "le", "at most"), (Lt, "lt", "less than"))
        bounds = [f"{word} {getattr(m, key)}" for cls, key, word in words for m in metadata if isinstance(m, cls)]
        return ", ".join([said, *bounds])
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(type_text(one) for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is Literal:
        return ", ".join(json.dumps(value) for value in get_args(kind))
    if get_origin(kind) in (tuple, list):
        return f"array of {type_text(get_args(kind)[0])}s"
    if get_origin(kind) is not None or members(kind):
        return "table"
    return {bool: "true or false", int: "integer", float: "number", str: "string", Path: "path"}.get(kind, "value")


def default_text(key: Key) -> str:
    value = key.default
    if value is None or (isinstance(value, str | tuple | dict) and not value):
        return ""
    if isinstance(value, float) and (math.isinf(value) or "duration" in type_text(key.type)):
        return json.dumps(format_duration(value))
    if isinstance(value, tuple | list):
        return json.dumps([str(one) for one in value])
    if key.name == "mode":
        return f'"{value:04o}"'
    if isinstance(value, int) and "size" in type_text(key.type) and value:
        return json.dumps(format_size(value))
    return json.dumps(value if isinstance(value, bool | int | float) else str(value))


def told(key: Key) -> list[str]:
    facts = [type_text(key.type)] + ([f"default: {text}"] if (text := default_text(key)) else [])
    lines = [".TP", f"\\fB{plain(key.name)}\\fR"]
    return [*lines, *([prose(key.text), ".br"] if key.text else []), f"({prose('; '.join(facts))})"]


def table(name: str, schema: Any, *more: Any) -> list[str]:
    """One table's section, and those of the tables inside."""
    own, inner = [], []
    for key in keys(schema, *more):
        if members(key.type):
            inner += table(f"{name}.{key.name}" if name else key.name, key.type, *(_prose_of(key.name)))
        else:
            own += told(key)
    head = [f".SS [{plain(name)}]", *([prose(about)] if (about := _about(schema)) else [])] if own and name else []
    return [*head, *own, *inner]


def _about(schema: Any) -> str:
    """What a section says of itself. A dataclass tells programmers, not readers of its table."""
    return "" if is_dataclass(schema) else (schema.__doc__ or "").split("\n\n")[0]


def _prose_of(name: str) -> tuple[Any, ...]:
    return (ChatSettings,) if name == "chat" else ()


def settings_page() -> str:
    lines = title("lmd.toml", 5, "settings of the daemon lmd")
    lines += [".SH DESCRIPTION"]
    lines += [
        prose("TOML. What stands nowhere has its default. Flags win over variables, and variables over the file:")
    ]
    lines += [prose("the key `port` of `[server]` is `--set server.port=N` and `LMD_SERVER__PORT`.")]
    lines += [
        prose("`lmd --check` tells what is wrong, with file and line; `lmd --print-config` what applies and why.")
    ]
    lines += [prose("SIGHUP and `lmctl reload` read it anew; a file with a mistake changes nothing.")]
    lines += [".SH SETTINGS", *table("", Settings)]
    return page(lines, "lmd.toml(5)")


def preset_page() -> str:
    lines = title("lmd-preset", 5, "a preset of lmd: a model, and how to load, sample and prompt it")
    lines += [".SH DESCRIPTION"]
    lines += [prose("A TOML file in the presets directory. Its name without `.toml` is a name that requests may use.")]
    lines += [prose("Edits are taken over when they are saved; `lmctl preset check` tells what is wrong.")]
    lines += [".SH KEYS", *table("", SCHEMA, Preset)]
    example = ['model = "qwen3-8b"', 'ttl = "30m"', "", "[load]", "context_length = 8192", "", "[sampling]"]
    lines += [".SH EXAMPLE", ".nf", *(plain(line) or "\\&" for line in [*example, "temperature = 0.2"]), ".fi"]
    return page(lines, "lmd-preset(5)")


def page(lines: list[str], own: str) -> str:
    return "\n".join([*lines, *see_also(own), ""])


def pages() -> dict[str, str]:
    """File name → text."""
    return {
        "lmctl.1": lmctl_page(commands()),
        "lmd.8": lmd_page(),
        "lmd.toml.5": settings_page(),
        "lmd-preset.5": preset_page(),
    }


if __name__ == "__main__":
    for name, text in pages().items():
        (Path(sys.argv[1]) / name).write_text(text)
