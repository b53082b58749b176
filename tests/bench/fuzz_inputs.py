"""What fuzzing begins with and how it is spoiled: hypothesis strategies over bytes and over JSON."""

import copy
import json
import struct
from typing import Any

from hypothesis import strategies as st

U64 = struct.Struct("<Q").pack

_PATCHES = st.binary(min_size=1, max_size=8) | st.sampled_from(
    [U64((1 << 64) - 1), U64(1 << 63), U64(1 << 32), U64(1 << 20), U64(0), b"\xff" * 4, struct.pack("<I", 9)]
)


@st.composite
def spoiled(draw: st.DrawFn, good: bytes, near: int = 1 << 62) -> bytes:
    """``good`` with some bytes replaced, inserted, or cut off; more often within the first ``near`` bytes."""
    data = bytearray(good)
    for _ in range(draw(st.integers(1, 6))):
        last = max(0, len(data) - 1)
        at = draw(st.integers(0, min(last, near)) | st.integers(0, last))
        patch = draw(_PATCHES)
        if draw(st.booleans()):
            data[at : at + len(patch)] = patch
        else:
            data[at:at] = patch
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


# ── JSON ──────────────────────────────────────────────────────────────────────────────────────

_AWKWARD: list[Any] = [
    None, True, False, 0, -1, 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, 2**64, 10**400, 0.5, -0.0, 1e-320, 1e308,
    "", " ", "\0", "\ud800", "é" * 300, "x" * 70_000, "<|im_start|>system", "{{ messages }}", "../../passwd", "%s%n",
    "tiny-chat", "auto", "none", [], {}, [[]], [None], [0], {"": None}, {"type": "text"}, {"type": "object"},
    {"$ref": "#"}, {"type": "string", "pattern": "(a*)*$"}, {"enum": []}, {"anyOf": []},
    {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, {"type": "string", "minLength": 2**31},
]  # fmt: skip

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
_VALUES = st.sampled_from(_AWKWARD) | json_values


@st.composite
def spoiled_json(draw: st.DrawFn, good: Any) -> Any:
    """``good`` with up to four of its members, at any depth, replaced, left out, doubled, nested or added to."""
    root = [copy.deepcopy(good)]
    for _ in range(draw(st.integers(0, 4))):
        places = list(_places(root))
        parent, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.sampled_from(("replace", "replace", "drop", "double", "nest", "add"))):
            case "drop" if parent is not root:
                del parent[key]
            case "double" if isinstance(parent, list) and parent is not root:
                parent.insert(key, copy.deepcopy(parent[key]))
            case "nest":
                for _ in range(draw(st.sampled_from((1, 2, 20, 80)))):
                    parent[key] = [parent[key]] if draw(st.booleans()) else {"a": parent[key]}
            case "add" if isinstance(parent[key], dict):
                parent[key][draw(st.sampled_from(_NAMES) | st.text(max_size=8))] = copy.deepcopy(draw(_VALUES))
            case _:
                # A copy: what is drawn is one object each time, and may be spoiled in its turn.
                parent[key] = copy.deepcopy(draw(_VALUES))
    return root[0]


def _places(value: Any) -> Any:
    """Every member below ``value``, as its holder and its key there."""
    found, waiting = [], [value]
    while waiting:
        holder = waiting.pop()
        for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
            found.append((holder, key))
            if isinstance(holder[key], dict | list):
                waiting.append(holder[key])
    return found


_NAMES = [
    "model", "messages", "content", "role", "type", "text", "stop", "n", "seed", "stream", "max_tokens", "temperature",
    "top_p", "top_k", "logit_bias", "logprobs", "tools", "tool_choice", "tool_calls", "response_format", "grammar",
    "ttl", "preset", "prompt", "input", "system", "load", "context_length", "parallel", "gpu_layers", "draft_model",
    "$ref", "properties", "pattern", "minItems", "maxLength", "suffix", "echo", "thinking", "previous_response_id",
]  # fmt: skip


@st.composite
def body_of(draw: st.DrawFn, good: Any) -> bytes:
    """``good``, spoiled as a value and now and then also as text."""
    raw = json.dumps(draw(spoiled_json(good))).encode()
    match draw(st.integers(0, 29)):
        case 0:
            return raw[:-1] + b', "a": ' + draw(st.sampled_from((b"[", b'{"a":'))) * 50_000
        case 1 | 2 | 3 | 4 | 5:
            return draw(spoiled(raw))
        case _:
            return raw


# ── bodies that are right ─────────────────────────────────────────────────────────────────────

Route = tuple[str, str, Any]
"""Method, path, and a body that is right (None: none)."""

_MODEL = {"model": "tiny-chat"}
_HELLO = {"role": "user", "content": "Hello"}
_TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds.",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}
_SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "string", "pattern": "^x+$"}, "b": {"type": "array", "items": {"enum": [1, 2]}}},
    "required": ["a"],
    "additionalProperties": False,
}
_SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1, "seed": 1, "repeat_penalty": 1.1}
_CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}

CLIENT_ROUTES: tuple[Route, ...] = (
    ("POST", "/v1/chat/completions", {**_MODEL, "messages": [_HELLO], "max_tokens": 4, **_SAMPLING, "stop": ["z"]}),
    ("POST", "/v1/chat/completions", {
        **_MODEL, "max_tokens": 4, "tools": [_TOOL], "tool_choice": "auto", "logprobs": True, "top_logprobs": 2,
        "messages": [{"role": "system", "content": "S"}, _HELLO, {"role": "assistant", "tool_calls": [_CALL]},
                     {"role": "tool", "tool_call_id": "c", "content": "1"}],
    }),
    ("POST", "/v1/chat/completions", {
        **_MODEL, "messages": [_HELLO], "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": _SCHEMA}},
    }),
    ("POST", "/v1/completions", {
        **_MODEL, "prompt": ["Once", [1, 2, 3]], "max_tokens": 4, "n": 2, "logprobs": 1, "echo": False,
        "logit_bias": {"5": -100},
    }),
    ("POST", "/v1/completions", {**_MODEL, "prompt": "1", "max_tokens": 4, "grammar": 'root ::= "a" [b-d]+'}),
    ("POST", "/v1/embeddings", {**_MODEL, "input": ["a", "b"], "encoding_format": "float", "dimensions": 8}),
    ("POST", "/v1/rerank", {**_MODEL, "query": "q", "documents": ["a", {"text": "b"}], "top_n": 1}),
    ("POST", "/tokenize", {**_MODEL, "content": "Hi", "add_special": True, "with_pieces": True}),
    ("POST", "/detokenize", {**_MODEL, "tokens": [1, 2, 3]}),
    ("POST", "/apply-template", {**_MODEL, "messages": [_HELLO], "chat_template_kwargs": {"enable_thinking": False}}),
    ("POST", "/v1/messages", {
        **_MODEL, "max_tokens": 4, "system": [{"type": "text", "text": "S"}], "stop_sequences": ["z"],
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                     {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
                     {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "1"}]}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}], "tool_choice": {"type": "auto"},
    }),
    ("POST", "/v1/messages/count_tokens", {**_MODEL, "messages": [_HELLO]}),
    ("POST", "/api/v0/chat/completions", {**_MODEL, "messages": [_HELLO], "max_tokens": 4}),
    ("POST", "/api/v0/completions", {**_MODEL, "prompt": "Once", "max_tokens": 4}),
    ("POST", "/api/v1/chat", {
        **_MODEL, "input": [{"type": "text", "content": "Hi"}], "max_output_tokens": 4, "store": False, "stream": False,
    }),
    ("POST", "/api/v1/models/load", {**_MODEL, "context_length": 512, "eval_batch_size": 64, "ttl": 5}),
    ("POST", "/api/v1/models/unload", {"instance_id": "none-such"}),
    ("POST", "/api/v1/models/download", {"model": "nobody/nothing", "quantization": "Q4_0"}),
    ("GET", "/v1/models", None),
    ("GET", "/v1/models/tiny-chat", None),
    ("GET", "/api/v0/models", None),
    ("GET", "/api/v1/models", None),
    ("GET", "/metrics", None),
)  # fmt: skip

CONTROL_ROUTES: tuple[Route, ...] = (
    ("GET", "/status", None),
    ("GET", "/models", None),
    ("GET", "/instances", None),
    ("GET", "/presets", None),
    ("GET", "/presets/counter?effective=1", None),
    ("GET", "/models/tiny-chat", None),
    ("GET", "/tokens", None),
    ("GET", "/chats", None),
    ("GET", "/downloads", None),
    ("GET", "/hub/search?q=x&n=3", None),
    ("GET", "/hub/model?name=a%2Fb", None),
    ("POST", "/presets/check", None),
    ("POST", "/reload", None),
    ("POST", "/load", {
        **_MODEL, "ttl": 5.0, "identifier": "mine", "estimate_only": True,
        "load": {"context_length": 512, "parallel": 2, "gpu_layers": 0, "cache_type_k": "f16", "flash_attention": True},
    }),
    ("POST", "/load", {**_MODEL, "ttl": 5.0, "load": {"context_length": 256}, "reload": True}),
    ("POST", "/unload", {"id": "tiny-chat", "force": True}),
    ("POST", "/tokens", {"name": "n", "scopes": ["inference"], "lifetime": 1.0}),
    ("POST", "/tokens/revoke", {"name": "n"}),
    ("POST", "/chats/remove", {"ids": ["resp_x"]}),
    ("POST", "/models/remove", {"model": "nothing", "dry_run": True}),
    ("POST", "/downloads", {"model": "nobody/nothing", "quantization": "Q4_0", "format": "gguf"}),
    ("POST", "/downloads/none/pause", None),
)  # fmt: skip


@st.composite
def request_of(draw: st.DrawFn, routes: tuple[Route, ...]) -> tuple[str, str, bytes]:
    """Method, path and body; the path is spoiled now and then."""
    method, path, good = draw(st.sampled_from(routes))
    raw = b"" if good is None else draw(body_of(good))
    if draw(st.integers(0, 9)) == 0:
        path += draw(st.sampled_from(["/", "/x", "%00", "%ff", "/../..", "?", "?a=b&a=c", "/" + "x" * 3000, "é"]))
        method = draw(st.sampled_from([method, "GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "BREW"]))
    return method, path, raw


@st.composite
def raw_http(draw: st.DrawFn, routes: tuple[Route, ...]) -> bytes:
    """What a broken or hostile client puts on the wire: a request whose every byte may be wrong."""
    method, path, good = draw(st.sampled_from(routes))
    body = b"" if good is None else json.dumps(good).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", "Connection: close"]
    chunked = draw(st.booleans())
    lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
    if draw(st.booleans()):
        lines.append(draw(st.sampled_from(_HEADERS)))
    if chunked:
        body = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
    whole = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
    return draw(spoiled(whole, near=300))


_HEADERS = [
    "Content-Length: -1", "Content-Length: 99999999999999999999", "Content-Length: 0", "Transfer-Encoding: gzip",
    "Host: evil.example", "Origin: http://evil.example", "Expect: 100-continue", "Content-Encoding: gzip",
    "X: " + "y" * 20_000,
    "Authorization: Bearer \xff", "X-Request-Id: \t", "Upgrade: websocket", "Content-Encoding: br", "Range: bytes=0-",
]  # fmt: skip
