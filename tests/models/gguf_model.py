"""Writes a GGUF model from a shape, a vocabulary and a source of weights: all that the generators here share.

The weights are asked for one tensor at a time, so a model larger than memory can be written.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter, LlamaFileType, quant_shape_to_byte_shape, quants

from tests.models.metadata import Field, read_metadata

Array = npt.NDArray[Any]
WeightSource = Callable[[str, tuple[int, ...]], Array]
"""``source(name, shape)``: the float32 weights of one tensor, rows of the matrix first (``(n_out, n_in)``)."""

QuantName = Literal["F32", "F16", "Q8_0", "Q5_0", "Q4_0"]
FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "Q8_0": LlamaFileType.MOSTLY_Q8_0,
    "Q5_0": LlamaFileType.MOSTLY_Q5_0,
    "Q4_0": LlamaFileType.MOSTLY_Q4_0,
}

_QUANTIZED_AT_ONCE = 1 << 22
"""Weights handed to `gguf.quants` in one call: its intermediates take about ten times their size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder's dimensions. ``qwen2`` differs from ``llama`` by biases on Q, K and V and by its RoPE pairing."""

    architecture: Literal["llama", "qwen2"]
    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    n_ctx_train: int = 4096
    rope_freq_base: float = 10000.0
    rms_epsilon: float = 1e-5
    tied: bool = True
    """The output matrix is the token embedding."""

    def __post_init__(self) -> None:
        if self.architecture not in {"llama", "qwen2"}:
            raise ValueError(f"architecture {self.architecture!r} cannot be written; use llama or qwen2")
        if min(self.layers, self.width, self.heads, self.kv_heads, self.feed_forward, self.n_ctx_train) < 1:
            raise ValueError(f"every dimension must be at least 1: {self}")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(
                f"width {self.width} must be an even multiple of the {self.heads} heads (RoPE turns pairs)"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads cannot share {self.kv_heads} KV heads evenly")

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as metadata: every ``tokenizer.ggml.*`` field of a GGUF file; the chat template may be empty."""

    fields: Mapping[str, Field]
    chat_template: str

    @classmethod
    def from_gguf(cls, path: Path) -> "Vocabulary":
        """The vocabulary and template of the GGUF file at ``path``; ValueError where it has no vocabulary."""
        metadata = read_metadata(path)
        fields = {key: field for key, field in metadata.items() if key.startswith("tokenizer.ggml.")}
        if "tokenizer.ggml.tokens" not in fields:
            raise ValueError(f"{path} has no vocabulary")
        template = metadata.get("tokenizer.chat_template", Field.text(""))
        return cls(fields, template.value.decode())

    @property
    def n_tokens(self) -> int:
        return len(self.fields["tokenizer.ggml.tokens"].value)


def tensor_shapes(shape: Shape, n_vocab: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the model, by name in file order. Matrices are ``(n_out, n_in)``."""
    width, kv_width, feed_forward = shape.width, shape.kv_heads * shape.head_dim, shape.feed_forward
    tensors: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, width), "output_norm.weight": (width,)}
    if not shape.tied:
        tensors["output.weight"] = (n_vocab, width)
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        tensors |= {
            block + "attn_norm.weight": (width,),
            block + "ffn_norm.weight": (width,),
            block + "attn_q.weight": (width, width),
            block + "attn_k.weight": (kv_width, width),
            block + "attn_v.weight": (kv_width, width),
            block + "attn_output.weight": (width, width),
            block + "ffn_gate.weight": (feed_forward, width),
            block + "ffn_up.weight": (feed_forward, width),
            block + "ffn_down.weight": (width, feed_forward),
        }
        if shape.architecture == "qwen2":
            tensors |= {
                block + "attn_q.bias": (width,),
                block + "attn_k.bias": (kv_width,),
                block + "attn_v.bias": (kv_width,),
            }
    return tensors


def write_model(
    path: Path,
    *,
    name: str,
    shape: Shape,
    vocabulary: Vocabulary,
    weights: WeightSource,
    quantization: QuantName = "F16",
) -> None:
    """Write the model to ``path``, replacing it at once when it is whole (a reader never sees half a model).

    Matrices are stored as ``quantization``, vectors as F32. ValueError where a matrix's rows do not fit the
    quantization's blocks.
    """
    kind = GGMLQuantizationType[quantization]

    def add_metadata(writer: Any) -> None:
        _add_shape(writer, shape)
        writer.add_file_type(FILE_TYPES[quantization])

    tensors = tensor_shapes(shape, vocabulary.n_tokens)
    _check_rows(tensors, kind)
    write_tensors(
        path,
        architecture=shape.architecture,
        name=name,
        vocabulary=vocabulary,
        add_metadata=add_metadata,
        tensors=tensors,
        weights=weights,
        kind=kind,
    )


def write_tensors(
    path: Path,
    *,
    architecture: str,
    name: str,
    vocabulary: Vocabulary,
    add_metadata: Callable[[Any], None],
    tensors: Mapping[str, tuple[int, ...]],
    weights: WeightSource,
    kind: GGMLQuantizationType,
) -> None:
    """Write a model of any ``architecture``: ``add_metadata`` is given the writer, ``tensors`` stand in file order."""
    partial = path.with_name(path.name + ".partial")
    writer = GGUFWriter(partial, architecture)
    try:
        writer.add_name(name)
        add_metadata(writer)
        _add_vocabulary(writer, vocabulary)
        for tensor, dimensions in tensors.items():
            stored = kind if len(dimensions) > 1 else GGMLQuantizationType.F32
            layout, data_type = _storage(dimensions, stored)
            n_bytes = int(np.prod(layout)) * data_type.itemsize
            writer.add_tensor_info(tensor, layout, data_type, n_bytes, raw_dtype=stored)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, dimensions in tensors.items():
            values = weights(tensor, dimensions)
            if values.shape != dimensions:
                raise ValueError(f"{tensor} has shape {values.shape} where the model needs {dimensions}")
            writer.write_tensor_data(encode(values, kind) if len(dimensions) > 1 else values.astype(np.float32))
        writer.close()
        partial.replace(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)


def encode(values: Array, kind: GGMLQuantizationType) -> Array:
    """A float matrix in the bytes of ``kind``: float16, float32, or uint8 rows of quantized blocks."""
    if kind is GGMLQuantizationType.F32:
        return values.astype(np.float32)
    if kind is GGMLQuantizationType.F16:
        return values.astype(np.float16)
    rows = max(1, _QUANTIZED_AT_ONCE // values.shape[-1])
    pieces = [quants.quantize(values[at : at + rows], kind) for at in range(0, len(values), rows)]
    return np.concatenate(pieces)


def _storage(dimensions: tuple[int, ...], kind: GGMLQuantizationType) -> tuple[tuple[int, ...], np.dtype[Any]]:
    if kind is GGMLQuantizationType.F32:
        return dimensions, np.dtype(np.float32)
    if kind is GGMLQuantizationType.F16:
        return dimensions, np.dtype(np.float16)
    return tuple(quant_shape_to_byte_shape(dimensions, kind)), np.dtype(np.uint8)


def _check_rows(tensors: Mapping[str, tuple[int, ...]], kind: GGMLQuantizationType) -> None:
    block, _ = GGML_QUANT_SIZES[kind]
    for tensor, dimensions in tensors.items():
        if len(dimensions) > 1 and dimensions[-1] % block:
            raise ValueError(
                f"{kind.name} packs {block} weights together, but rows of {tensor} have {dimensions[-1]}:"
                f" choose a width and a feed-forward that are multiples of {block}, or F16"
            )


def _add_shape(writer: Any, shape: Shape) -> None:
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.rms_epsilon)
    writer.add_rope_freq_base(shape.rope_freq_base)
    writer.add_rope_dimension_count(shape.head_dim)


def _add_vocabulary(writer: Any, vocabulary: Vocabulary) -> None:
    writer.add_vocab_size(vocabulary.n_tokens)
    for key, field in vocabulary.fields.items():
        writer.add_key_value(key, field.value, field.type, field.element_type)
    if vocabulary.chat_template:
        writer.add_chat_template(vocabulary.chat_template)
