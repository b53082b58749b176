"""What a JSON schema says of an object's members, for formats that write each argument by itself.

References are followed and combined schemas taken apart, so that arguments look the same however they were described.
"""

from collections.abc import Iterator, Mapping
from itertools import islice, product
from typing import Any

_MAX_HOPS = 32
_MAX_DEPTH = 8
_MAX_FORMS = 16
"""Combinations of ``anyOf`` in one object; beyond them only the members that all have in common are known."""


def followed(schema: Any, root: Mapping[str, Any]) -> Any:
    """``schema``, or what it refers to within ``root``."""
    for _ in range(_MAX_HOPS):
        if not isinstance(schema, Mapping) or not str(schema.get("$ref", "")).startswith("#"):
            break
        schema = _pointed(str(schema["$ref"])[1:], root)
    return schema


def _pointed(pointer: str, root: Any) -> Any:
    found = root
    for escaped in pointer.split("/")[1:]:
        step = escaped.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and step.isdigit() and int(step) < len(found):
            found = found[int(step)]
        elif isinstance(found, Mapping) and step in found:
            found = found[step]
        else:
            return {}
    return found


def object_forms(schema: Any, root: Mapping[str, Any], depth: int = 0) -> list[dict[str, Any]]:
    """The objects that ``schema`` takes, each with its ``properties`` and ``required`` in one place."""
    schema = followed(schema, root)
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return [{"properties": {}, "required": []}]
    properties, required = schema.get("properties"), schema.get("required")
    own = {
        "properties": dict(properties) if isinstance(properties, Mapping) else {},
        "required": list(required) if isinstance(required, list) else [],
    }
    choices = [[part] for part in _listed(schema, "allOf")] + [_listed(schema, key) for key in ("anyOf", "oneOf")]
    forms: list[dict[str, Any]] = [own]
    for parts in filter(None, choices):
        every = (form for part in parts for form in object_forms(part, root, depth + 1))
        group = list(islice(every, _MAX_FORMS + 1))
        if len(forms) * len(group) <= _MAX_FORMS:
            forms = [_merged(a, b) for a, b in product(forms, group)]
    return forms


def _listed(schema: Mapping[str, Any], key: str) -> list[Any]:
    parts = schema.get(key)
    return parts if isinstance(parts, list) else []


def _merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "properties": {**a["properties"], **b["properties"]},
        "required": [*a["required"], *(key for key in b["required"] if key not in a["required"])],
    }


def members(form: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Name, schema and whether it must be there, in the order of ``properties``."""
    required = form["required"]
    for key, value in form["properties"].items():
        yield key, value, key in required
    for key in required:
        if key not in form["properties"]:
            yield key, {}, True


def properties_of(schema: Any, root: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Every member's schema; one that differs between the forms of the object is left open.

    ``root`` is what references are relative to; None: ``schema`` itself.
    """
    found: dict[str, Any] = {}
    if root is None:
        root = schema if isinstance(schema, Mapping) else {}
    for form in object_forms(schema, root):
        for key, value in form["properties"].items():
            found[key] = value if found.get(key, value) == value else {}
    return found


def definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def alternatives(schema: Any) -> list[Any]:
    """The schemas that ``schema`` chooses from (``anyOf``, ``oneOf``, several types); none where there is no choice."""
    if not isinstance(schema, Mapping):
        return []
    for key in ("anyOf", "oneOf"):
        if parts := _listed(schema, key):
            return parts
    return [{**schema, "type": kind} for kind in _listed(schema, "type")]
