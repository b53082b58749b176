"""Plain HTTP and server-sent events, as a client without a library speaks them."""

import http.client
import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs


def ask(url: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, str]:
    """Status and text of the answer."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, None if body is None else json.dumps(body), sent)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    return response.status, text


def events(text: str) -> list[tuple[str, Any]]:
    """The named events of a stream, without its comments."""
    found = []
    for block in text.split("\n\n"):
        lines = [line for line in block.split("\n") if line and not line.startswith(":")]
        if not lines:
            continue
        named, data = lines
        assert named.startswith("event: ") and data.startswith("data: ")
        found.append((named.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


def chunks(text: str) -> list[Any]:
    """The unnamed events of a stream that ends with [DONE]."""
    *blocks, done, rest = text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(block.removeprefix("data: ")) for block in blocks if not block.startswith(":")]


# ── schemas ───────────────────────────────────────────────────────────────────────────────────

Schema = dict[str, Any]


def obj(required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def array(items: Any) -> Schema:
    return {"type": "array", "items": items}


def one_of(*values: Any) -> Schema:
    return {"enum": list(values)}


def any_of(*schemas: Any) -> Schema:
    return {"anyOf": list(schemas)}


STRING: Schema = {"type": "string"}
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
SECONDS: Schema = {"type": "number", "minimum": 0}
SHARE: Schema = {"type": "number", "minimum": 0, "maximum": 1}
BOOLEAN: Schema = {"type": "boolean"}
NULL: Schema = {"type": "null"}


def valid(value: Any, schema: Schema) -> Any:
    jsonschema_rs.validator_for(schema).validate(value)
    return value
