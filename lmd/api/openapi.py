"""``GET /openapi.json``: what the HTTP API takes and gives, put together from the types that do it.

Each dialect lists its `Operation`s next to its routes. Bodies are described by the pydantic models that read them,
answers by the types that `Operation` names.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from aiohttp import web
from pydantic import TypeAdapter

from lmd.version import VERSION

_REFERENCE = "#/components/schemas/{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method of one path. ``path`` is written as OpenAPI does (``/v1/models/{id}``)."""

    method: str
    path: str
    summary: str
    answer: Any
    """Type of the JSON answer (status 200): anything that pydantic can describe."""
    error: Any
    """Type of an error's body."""
    body: Any = None
    """Type of the request's JSON body."""
    statuses: Sequence[int] = ()
    """Further statuses that an error may have, beside the usual ones."""
    streams: bool = False
    """With ``"stream": true`` the answer is server-sent events."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Descriptions of the path's parameters, by name."""


_USUAL = (400, 401, 403, 404, 500, 503)
_WITH_BODY = (413, 415)
_GENERATING = (409, 429)


def document(operations: Sequence[Operation]) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    schemas, definitions = _schemas(operations)
    paths: dict[str, dict[str, Any]] = {}
    for one in operations:
        paths.setdefault(one.path, {})[one.method.lower()] = _operation(one, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lmd",
            "version": VERSION,
            "summary": "Local GGUF language models over OpenAI's, Anthropic's and LM Studio's APIs.",
        },
        "paths": paths,
        "components": {"schemas": definitions},
    }


_Mode = Literal["validation", "serialization"]
_Schemas = Mapping[tuple[int, _Mode], dict[str, Any]]
"""By the identity of the type: not all of them can be hashed."""


def _schemas(operations: Sequence[Operation]) -> tuple[_Schemas, dict[str, Any]]:
    """Each type's schema, and the named parts of all: made together, so that equal names stay apart."""
    types: dict[tuple[int, _Mode], Any] = {}
    for one in operations:
        types[id(one.answer), "serialization"] = one.answer
        types[id(one.error), "serialization"] = one.error
        if one.body is not None:
            types[id(one.body), "validation"] = one.body
    inputs: list[tuple[tuple[int, _Mode], _Mode, TypeAdapter[Any]]] = [
        (key, key[1], TypeAdapter(kind)) for key, kind in types.items()
    ]
    found, rest = TypeAdapter.json_schemas(inputs, ref_template=_REFERENCE.format("{model}"))
    return {key: schema for (key, _), schema in found.items()}, rest.get("$defs", {})


def _operation(one: Operation, schemas: _Schemas) -> dict[str, Any]:
    content = {"application/json": {"schema": schemas[id(one.answer), "serialization"]}}
    if one.streams:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": schemas[id(one.error), "serialization"]}}
    statuses = {*_USUAL, *one.statuses}
    if one.body is not None:
        statuses |= {*_WITH_BODY, *_GENERATING}
    described: dict[str, Any] = {
        "operationId": f"{one.method.lower()}{one.path.replace('/', '_').replace('{', '').replace('}', '')}",
        "summary": one.summary,
        "responses": {
            "200": {"description": "The answer.", "content": content},
            **{str(status): {"description": "An error.", "content": error} for status in sorted(statuses)},
        },
    }
    if one.parameters:
        described["parameters"] = [
            {
                "name": name,
                "in": "path",
                "required": True,
                "description": text,
                "schema": {"type": "string", "minLength": 1},
            }
            for name, text in one.parameters.items()
        ]
    if one.body is not None:
        schema = schemas[id(one.body), "validation"]
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def routes(operations: Sequence[Operation]) -> list[web.RouteDef]:
    encoded = msgspec.json.encode(document(operations))

    async def serve(_: web.Request) -> web.Response:
        return web.Response(body=encoded, content_type="application/json")

    return [web.get("/openapi.json", serve)]
