"""Values that a model wrote bare, as JSON."""

import ast
from collections.abc import Mapping
from typing import Any

from lmd.chat.jsontext import dumps, loads


def only_string(schema: Any) -> bool:
    """Whether a value under ``schema`` is certainly a string."""
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type")
    if kind is not None:
        return bool(kind == "string")
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else None)
    return bool(values) and all(isinstance(value, str) for value in values or ())


def _allows(schema: Any, kind: str) -> bool:
    if not isinstance(schema, Mapping) or "type" not in schema:
        return True
    kinds = schema["type"]
    return kind in kinds if isinstance(kinds, list) else kind == kinds


def typed(text: str, schema: Any) -> str:
    """A bare value as JSON: what it says, where its schema allows that; Python's literals too; else a string."""
    if only_string(schema):
        return dumps(text)
    try:
        value = loads(text)
    except ValueError:
        try:
            value = ast.literal_eval(text.strip())
            again = dumps(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            return dumps(text)
        if not isinstance(value, (dict, list, bool, int, float, type(None))):
            return dumps(text)
        return again if _is_json(again) else dumps(text)
    if isinstance(value, str):
        return text.strip() if _allows(schema, "string") else dumps(text)
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if _allows(schema, "string") and isinstance(schema, Mapping) and "type" in schema:
        kind = (
            "boolean" if isinstance(value, bool) else "null" if value is None else "array" if isinstance(value, list)
            else "object" if isinstance(value, dict) else "number"
        )  # fmt: skip
        if not _allows(schema, kind) and not (numeric and _allows(schema, "integer")):
            return dumps(text)
    return text.strip()


def _is_json(text: str) -> bool:
    try:
        loads(text)
    except ValueError:
        return False
    return True
