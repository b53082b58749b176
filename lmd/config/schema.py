"""Checking outside data against a schema, and saying what was expected where it does not fit.

A schema is a pydantic model or a dataclass; data are TOML values. They are checked as strict JSON: ``"4"`` is no
integer and ``1`` no boolean, while arrays fit tuples and tables fit dataclasses.
"""

import datetime
import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from lmd.config.document import dotted, printable
from lmd.config.positions import Loc


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong at ``loc`` of the data."""

    loc: Loc
    message: str


class Misfit(Exception):
    """Data that do not fit their schema. ``faults`` has at least one."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("; ".join(f"{dotted(fault.loc)}: {fault.message}" for fault in faults))
        self.faults = tuple(faults)


@cache
def adapter(schema: Any) -> TypeAdapter[Any]:
    return TypeAdapter(schema)


def check(schema: Any, data: Any, *, root: Any = None, at: Loc = ()) -> Any:
    """``data`` as an object of ``schema``. Raises Misfit.

    ``root`` and ``at``: the schema is the part ``at`` of another one, to which the faults' places and hints refer.
    """
    if foreign := list(_foreign(data, at)):
        raise Misfit(foreign)
    try:
        return adapter(schema).validate_json(json.dumps(data), strict=True)
    except ValidationError as exc:
        raise Misfit(_explain(exc, schema if root is None else root, data, at)) from exc


def _foreign(data: Any, loc: Loc) -> Iterator[Fault]:
    """What TOML has and neither JSON nor msgpack takes."""
    match data:
        case dict():
            for key, value in data.items():
                yield from _foreign(value, (*loc, key))
        case list():
            for index, value in enumerate(data):
                yield from _foreign(value, (*loc, index))
        case datetime.date() | datetime.time():
            yield Fault(loc, "dates and times are not used here; put it in quotes")
        case int() if not -(2**63) <= data < 2**63:
            yield Fault(loc, "this integer does not fit in 64 bits")


# ── schemas ───────────────────────────────────────────────────────────────────────────────────


def members(schema: Any) -> dict[str, Any]:
    """The keys of a schema's table with their types; empty where ``schema`` is no table with known keys."""
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        hints = get_type_hints(schema, include_extras=True)
        return {name: hints[name] for name in schema.model_fields}
    if isinstance(schema, type) and is_dataclass(schema):
        hints = get_type_hints(schema, include_extras=True)
        return {field.name: hints[field.name] for field in fields(schema)}
    return {}


@cache
def leaves(schema: Any) -> dict[str, Any]:
    """Every dotted key below ``schema`` that is not itself a table with known keys, with its type."""
    found: dict[str, Any] = {}
    for name, kind in members(schema).items():
        if inner := leaves(kind):
            found |= {f"{name}.{key}": type_ for key, type_ in inner.items()}
        else:
            found[name] = kind
    return found


def suggest(root: Any, loc: Loc) -> str:
    """What to say about the unknown key ``loc``: the nearest known key, or all that are known there."""
    at = root
    for part in loc[:-1]:
        at = members(at).get(str(part))
    here, word = list(members(at)), str(loc[-1])
    prefix = dotted(loc[:-1])
    elsewhere = [key for key in leaves(root) if key.rpartition(".")[2] == word]
    nearest = (
        difflib.get_close_matches(word, here, n=1, cutoff=0.75)
        or elsewhere
        or difflib.get_close_matches(word, here, n=1, cutoff=0.55)
        or difflib.get_close_matches(f"{prefix}.{word}", leaves(root), n=1, cutoff=0.8)
    )
    if nearest:
        key = f"{prefix}.{nearest[0]}" if prefix and nearest[0] in here else nearest[0]
        return f"unknown key; did you mean '{key}'?"
    return f"unknown key; known here: {', '.join(here)}" if here else "unknown key"


# ── pydantic's errors in words ────────────────────────────────────────────────────────────────

_WANTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of a sensible size",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "a string",
    "path_type": "a string with a path",
    "tuple_type": "an array",
    "list_type": "an array",
    "dict_type": "a table",
    "dataclass_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS = {
    "greater_than_equal": ("at least", "ge"),
    "greater_than": ("more than", "gt"),
    "less_than_equal": ("at most", "le"),
    "less_than": ("less than", "lt"),
}
_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}


def _explain(error: ValidationError, root: Any, data: Any, at: Loc) -> list[Fault]:
    """One fault per key, saying what was expected there and what stands there."""
    by_loc: dict[Loc, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        by_loc.setdefault(_in_data(detail["loc"], data), []).append(detail)
    return [Fault((*at, *loc), _message(details, root, (*at, *loc))) for loc, details in by_loc.items()]


def _in_data(loc: Loc, data: Any) -> Loc:
    """``loc`` without what pydantic adds to it for the branches of a union."""
    for length, part in enumerate(loc):
        is_there = part in data if isinstance(data, dict) else isinstance(data, list) and part in range(len(data))
        if not is_there:
            return loc[:length]
        data = data[part]
    return loc


def _message(details: Sequence[ErrorDetails], root: Any, loc: Loc) -> str:
    if details[0]["type"] in _UNKNOWN:
        return suggest(root, loc)
    if details[0]["type"] == "missing":
        return f"'{details[0]['loc'][-1]}' is missing"
    wanted = list(dict.fromkeys(_expected(detail) for detail in details))
    if len(details) == 1 and details[0]["type"] == "value_error":
        text = wanted[0]
    else:
        text = "expected " + " or ".join(part.removeprefix("expected ") for part in wanted)
    return f"{text}, not {_shown(details[0]['input'])}"


def _expected(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _WANTED:
        return _WANTED[kind]
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{words} {context[name]:g}" if isinstance(context[name], float) else f"{words} {context[name]}"
    if kind == "literal_error":
        return str(context["expected"]).replace("'", '"')
    if kind in {"too_long", "too_short", "string_too_short", "string_too_long"}:
        limit = context.get("max_length", context.get("min_length"))
        return f"{'at most' if 'long' in kind else 'at least'} {limit} {'characters' if 'string' in kind else 'items'}"
    if kind == "value_error":
        return str(context["error"])
    return detail["msg"]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, dict):
        return "a table"
    return printable(text if len(text) <= 60 else text[:57] + "…")
