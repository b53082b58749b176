"""Tell before anything is generated what of a JSON schema or grammar cannot be enforced, and where it stands."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from llguidance import LLMatcher

from lmd.chat.grammar import JSON_STYLE, as_text
from lmd.errors import InvalidRequest, Unsupported

_KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")
_MAX_DEPTH = 100


def check_schema(schema: Mapping[str, Any], path: str) -> None:
    """`Unsupported` (a 400) that names the keyword and its path; `InvalidRequest` for what is no schema."""
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(f"The schema cannot be read: {exc}.", param=path) from exc
    problem = _problem(text)
    if not problem:
        return
    where, inner = _smallest(schema, path, problem)
    keys = _KEYS.search(inner)
    named = keys.group(1).replace('"', "'") if keys else ""
    at = where if where != path else "its top level"
    if named:
        raise Unsupported(
            f"The JSON schema uses {named} at {at}, which cannot be enforced.",
            hint="Leave the keyword out and check it in your own code.",
            param=where,
        )
    raise InvalidRequest(f"The JSON schema cannot be enforced: {inner} (at {at}).", param=where)


def check_grammar(lark: str, param: str) -> None:
    """`InvalidRequest` when llguidance does not take the grammar."""
    problem = _lark_problem(as_text(lark))
    if problem:
        raise InvalidRequest(f"The constraint cannot be enforced: {problem}", param=param)


@lru_cache(maxsize=512)
def _problem(schema: str) -> str:
    grammar = LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE)
    return _first_error(grammar)


@lru_cache(maxsize=512)
def _lark_problem(lark: str) -> str:
    return _first_error(LLMatcher.grammar_from_lark(lark))


def _first_error(grammar: str) -> str:
    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return str(messages[0]).strip() if failed and messages else ""


def _smallest(schema: Mapping[str, Any], path: str, problem: str) -> tuple[str, str]:
    """The path of the innermost subschema that cannot be enforced, and why."""
    root = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    best, best_problem, depth = path, problem, -1
    for where, inner, level in _subschemas(schema, path, 0):
        if level <= depth:
            continue
        found = _problem(json.dumps({**root, **inner}))
        # Definitions are only compiled where something refers to them, so a failure here is this subschema's.
        if found and (_KEYS.search(found) is not None) >= (_KEYS.search(best_problem) is not None):
            best, best_problem, depth = where, found, level
    return best, best_problem


def _subschemas(schema: Any, path: str, level: int) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    if not isinstance(schema, Mapping) or level > _MAX_DEPTH:
        return
    yield path, schema, level
    for key in ("properties", "patternProperties", "$defs", "definitions"):
        children = schema.get(key)
        if isinstance(children, Mapping):
            for name, child in children.items():
                yield from _subschemas(child, f"{path}.{key}.{name}", level + 1)
    for key in ("items", "additionalProperties", "not", "if", "then", "else", "contains"):
        yield from _subschemas(schema.get(key), f"{path}.{key}", level + 1)
    for key in ("anyOf", "oneOf", "allOf", "prefixItems"):
        children = schema.get(key)
        if isinstance(children, list):
            for i, child in enumerate(children):
                yield from _subschemas(child, f"{path}.{key}.{i}", level + 1)
