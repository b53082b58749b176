"""Writes GGUF files byte by byte: right ones in little time, and wrong ones that no writer would make."""

import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

Tensor = tuple[str, tuple[int, ...], int, int]
"""Name, shape, type, bytes of data."""

TENSORS: tuple[Tensor, ...] = (
    ("token_embd.weight", (32, 8), 0, 1024),
    ("blk.0.attn_q.weight", (32, 4), 8, 136),
    ("blk.1.attn_q.weight", (32, 4), 8, 136),
)
VALUES: Mapping[str, Any] = {
    "general.architecture": "llama",
    "general.file_type": 7,
    "llama.block_count": 2,
    "llama.context_length": 8192,
    "llama.embedding_length": 32,
}


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(value: Any) -> bytes:
    match value:
        case bytes():  # already encoded, type and all
            return value
        case bool():
            return struct.pack("<I?", 7, value)
        case int():
            return struct.pack("<II", 4, value)
        case float():
            return struct.pack("<If", 6, value)
        case str():
            return struct.pack("<I", 8) + text(value)
        case list() if value and isinstance(value[0], str | bytes):
            return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        case list():
            return struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
    raise TypeError(value)


def build(
    values: Mapping[str, Any] = VALUES,
    tensors: Sequence[Tensor] = TENSORS,
    *,
    version: int = 3,
    n_keys: int | None = None,
    n_tensors: int | None = None,
    offsets: Sequence[int] | None = None,
    data: bool = True,
) -> bytes:
    """The bytes of a GGUF file. What is given by name replaces what would be right."""
    n_keys = len(values) if n_keys is None else n_keys
    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors) if n_tensors is None else n_tensors, n_keys)
    out += b"".join(text(key) + value_bytes(value) for key, value in values.items())
    offset = 0
    for index, (name, shape, kind, size) in enumerate(tensors):
        place = offset if offsets is None else offsets[index]
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, place)
        offset += -(-size // 32) * 32
    return out + bytes(-len(out) % 32) + bytes(offset if data else 0)


@pytest.fixture
def gguf_bytes() -> Callable[..., bytes]:
    return build


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., Path]:
    """put("publisher/repo/file.gguf", "Q4_K_M", general__name="x") writes a small model under tmp_path / "models"."""
    file_types = {"Q4_0": 2, "Q8_0": 7, "Q4_K_M": 15, "F16": 1}

    def put_file(place: str, quantization: str = "Q8_0", tensors: Sequence[Tensor] = TENSORS, **values: Any) -> Path:
        path = tmp_path / "models" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        dotted = {key.replace("__", "."): value for key, value in values.items()}
        path.write_bytes(build({**VALUES, "general.file_type": file_types[quantization], **dotted}, tensors))
        return path

    return put_file
