"""Tell before anything is generated what of a JSON schema or grammar cannot be enforced, and where it stands.

llguidance is imported where it is asked: most daemons are never sent a schema.
"""

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from hashlib import blake2b
from itertools import islice
from threading import Lock
from typing import Any

from lmd.chat.grammar import JSON_STYLE, as_text
from lmd.errors import InvalidRequest, Unsupported

_KEYS = re.compile(r"Unimplemented keys: \[(.*)\]")
_UNSUPPORTED = re.compile(r"Unimplemented|(not|only) supported|Unknown format|retrieving it failed")
"""What llguidance says of schemas that are good but beyond it; anything else it says is of schemas that are wrong."""
_REMEMBERED = 512
_MAX_REMEMBERED = 4096
"""Characters of a problem: llguidance may quote what it was given."""
_MAX_DEPTH = 100
_MAX_TRIED = 2000
"""Subschemas that are compiled by themselves to find the one to blame."""


def check_schema(schema: Mapping[str, Any], path: str) -> None:
    """`Unsupported` (a 400) for what cannot be enforced, `InvalidRequest` for what is no schema or fits nothing.

    Both name the keyword and its path.
    """
    try:
        text = json.dumps(schema)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidRequest(f"The schema cannot be read: {exc}.", param=path) from exc
    problem = _problem(text)
    if not problem:
        return
    where, inner = _innermost(schema, path, problem)
    listed = _KEYS.search(problem)
    keys = re.findall(r'"([^"]*)"', listed.group(1)) if listed else _culprits(inner, _definitions(schema), problem)
    named = ", ".join(f"'{key}'" for key in keys)
    at = where if where != path else "its top level"
    uses = f"The JSON schema uses {named} at {at}, which" if named else f"The JSON schema (at {at})"
    reason = "" if listed else ": " + " ".join(problem.split(". Enable")[0].split()).rstrip(".")
    if _UNSUPPORTED.search(problem):
        raise Unsupported(
            f"{uses} cannot be enforced{reason}.",
            hint="Leave the keyword out and check it in your own code.",
            param=where,
        )
    raise InvalidRequest(f"{uses} cannot be enforced{reason}.", param=where)


def check_grammar(lark: str, param: str) -> None:
    """`InvalidRequest` when llguidance does not take the grammar."""
    problem = _lark_problem(as_text(lark))
    if problem:
        raise InvalidRequest(f"The constraint cannot be enforced: {problem}", param=param)


class _Remembered:
    """What is wrong with the last texts that were asked for, found by their digests: a text may have a megabyte."""

    def __init__(self, find: Callable[[str], str]) -> None:
        self._find = find
        self._found: OrderedDict[bytes, str] = OrderedDict()
        self._lock = Lock()

    def __call__(self, text: str) -> str:
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).digest()
        with self._lock:
            if (known := self._found.get(key)) is not None:
                self._found.move_to_end(key)
                return known
        found = self._find(text)
        if len(found) <= _MAX_REMEMBERED:
            with self._lock:
                self._found[key] = found
                if len(self._found) > _REMEMBERED:
                    self._found.popitem(last=False)
        return found


@_Remembered
def _problem(schema: str) -> str:
    from llguidance import LLMatcher

    try:
        grammar = LLMatcher.grammar_from_json_schema(schema, overrides=JSON_STYLE)
    except ValueError as exc:  # what Python writes as JSON, it does not all read: numbers of 400 digits, say
        return str(exc).split(" at line ")[0]
    return _first_error(grammar).split("\n  while processing ")[0]


@_Remembered
def _lark_problem(lark: str) -> str:
    from llguidance import LLMatcher

    return _first_error(LLMatcher.grammar_from_lark(lark))


def _first_error(grammar: str) -> str:
    from llguidance import LLMatcher

    failed, messages = LLMatcher.validate_grammar_with_warnings(grammar)
    return str(messages[0]).strip() if failed and messages else ""


def _definitions(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: schema[key] for key in ("$defs", "definitions") if key in schema}


def _innermost(schema: Mapping[str, Any], path: str, problem: str) -> tuple[str, Mapping[str, Any]]:
    """The innermost subschema that has ``problem``, and its path."""
    full = _definitions(schema)
    hollow: dict[str, Any] = {
        key: {name: {} for name in named} for key, named in full.items() if isinstance(named, Mapping)
    }
    # Empty definitions first: what a subschema only refers to is mostly not its own problem.
    for root in (hollow, full):
        best, best_where, depth = schema, path, 0
        for where, inner, level in islice(_subschemas(schema, path, 0), _MAX_TRIED):
            own = {key: value for key, value in inner.items() if key not in root}
            if level > depth and _problem(json.dumps({**root, **own})) == problem:
                best, best_where, depth = inner, where, level
        if depth:
            break
    return best_where, best


def _culprits(schema: Mapping[str, Any], root: Mapping[str, Any], problem: str) -> list[str]:
    """The keywords of ``schema`` without which it would not have ``problem``."""
    keys = [key for key in schema if key not in root]
    found = []
    for key in keys:
        rest = {other: value for other, value in schema.items() if other != key}
        if _problem(json.dumps({**root, **rest})) != problem:
            found.append(key)
    return [key for key in found if key != "type"] or found


def _subschemas(schema: Any, path: str, level: int) -> Iterator[tuple[str, Mapping[str, Any], int]]:
    if not isinstance(schema, Mapping) or level > _MAX_DEPTH:
        return
    yield path, schema, level
    for key in ("$defs", "definitions", "properties", "patternProperties"):
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
