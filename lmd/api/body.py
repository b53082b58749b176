"""A request's JSON as a pydantic model, and mistakes in it named by the request's own fields."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema

from lmd.errors import InvalidRequest


def _fail_fast(schema: Any) -> None:
    """Have every list stop at its first mistake: a million of them are a million errors, of a kilobyte each."""
    if isinstance(schema, dict):
        if schema.get("type") == "list":
            schema["fail_fast"] = True
        schema = schema.values()
    elif not isinstance(schema, list | tuple):
        return
    for inner in schema:
        _fail_fast(inner)


class Body(BaseModel):
    """Base of what clients send. Unknown fields are ignored; known ones must have their type."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _fail_fast(schema)
        return schema


Read = TypeVar("Read", bound=BaseModel)


def read_body(kind: type[Read], raw: bytes) -> Read:
    """``raw`` JSON as a ``kind``. InvalidRequest names the first field that is wrong in ``param``."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise _as_invalid_request(error, raw) from None


def _as_invalid_request(error: ValidationError, raw: bytes) -> InvalidRequest:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    said = _parsed(raw)
    paths = [_path(problem["loc"], said, missing=problem["type"] == "missing") for problem in problems]
    # A union reports a problem for each of its members; the one that got deepest is the one that was meant.
    problem, path = max(zip(problems, paths, strict=True), key=lambda pair: len(pair[1]))
    if problem["type"] == "json_invalid":
        return InvalidRequest(f"The body is not JSON: {problem['msg'].removeprefix('Invalid JSON: ')}.")
    if not path:
        return InvalidRequest(f"The body is wrong: {problem['msg']}.")
    name = ".".join(path)
    if problem["type"] == "missing":
        return InvalidRequest(f"'{name}' is missing.", param=name)
    return InvalidRequest(f"'{name}' is wrong: {problem['msg']}.", param=name)


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _path(location: Sequence[int | str], said: Any, *, missing: bool) -> list[str]:
    """The steps of a pydantic location that lead somewhere in what was ``said``; the rest name members of unions."""
    path: list[str] = []
    for index, step in enumerate(location):
        is_key = isinstance(said, dict) and step in said
        if is_key or (isinstance(said, list) and isinstance(step, int) and step < len(said)):
            said = said[step]
        elif not (missing and index == len(location) - 1):
            continue
        path.append(str(step))
    return path
