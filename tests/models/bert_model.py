"""BERT-type models with random weights, and what they should compute, said in numpy.

Small ones are made within a test (milliseconds). For benchmarks, in the shape of all-MiniLM-L6-v2:

    python -m tests.models.bert_model --quantization Q8_0

prints the file's path; the file lies in the cache (`tests.bench.cache`) and is made once.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import erf
from pathlib import Path
from typing import Any, get_args

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, PoolingType, TokenType

from tests.bench.cache import cache_dir
from tests.bench.llama_source import SourceMissing, vocabulary_file
from tests.models.gguf_model import FILE_TYPES, Array, QuantName, Vocabulary, encode
from tests.models.metadata import Field
from tests.models.random_model import random_weights

_FORMAT = 1
"""Raise when `minilm` comes to mean another file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BertShape:
    layers: int = 2
    width: int = 64
    heads: int = 4
    feed_forward: int = 128
    n_ctx_train: int = 128
    epsilon: float = 1e-12


MINILM = BertShape(layers=6, width=384, heads=12, feed_forward=1536, n_ctx_train=512)


def wordpiece_vocabulary(words: Iterable[str] = ()) -> Vocabulary:
    """Letters, digits and some punctuation, at the beginning of a word and within it, and ``words``.

    As llama.cpp wants them: "▁" before what begins a word, and nothing before what goes on.
    """
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    tokens = [*special, *(f"▁{one}" for one in letters + ".,!?-'"), *letters, *(f"▁{word}" for word in words)]
    types = [TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens]
    roles = {"padding": 0, "unknown": 1, "bos": 2, "seperator": 3, "mask": 4}
    fields = {
        "tokenizer.ggml.model": Field.text("bert"),
        "tokenizer.ggml.tokens": Field.texts(tokens),
        "tokenizer.ggml.token_type": Field.int32s(int(kind) for kind in types),
        "tokenizer.ggml.token_type_count": Field.uint32(2),
        **{f"tokenizer.ggml.{role}_token_id": Field.uint32(token) for role, token in roles.items()},
    }
    return Vocabulary(fields, "")


def bert_weights(shape: BertShape, n_vocab: int, *, seed: int = 0, rank: bool = False) -> dict[str, Array]:
    """Every tensor by its name in a GGUF file, float32. Norms and biases differ from 1 and 0, so that they count."""
    width, wide = shape.width, shape.feed_forward
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (n_vocab, width),
        "token_types.weight": (2, width),
        "position_embd.weight": (shape.n_ctx_train, width),
        "token_embd_norm.weight": (width,),
        "token_embd_norm.bias": (width,),
    }
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        for name, dimensions in {
            **{f"attn_{one}": (width, width) for one in ("q", "k", "v", "output")},
            "ffn_up": (wide, width),
            "ffn_down": (width, wide),
        }.items():
            shapes |= {f"{block}{name}.weight": dimensions, f"{block}{name}.bias": dimensions[:1]}
        for name in ("attn_output_norm", "layer_output_norm"):
            shapes |= {f"{block}{name}.weight": (width,), f"{block}{name}.bias": (width,)}
    if rank:
        shapes |= {"cls.weight": (width, width), "cls.bias": (width,)}
        shapes |= {"cls.output.weight": (1, width), "cls.output.bias": (1,)}
    source, vary = random_weights(seed), np.random.default_rng(seed)
    spread = {"norm.weight": 0.3, "bias": 0.2}

    def drawn(name: str, dimensions: tuple[int, ...]) -> Array:
        extra = next((value for end, value in spread.items() if name.endswith(end)), 0.0)
        return (source(name, dimensions) + extra * vary.uniform(-1, 1, dimensions)).astype(np.float32)

    return {name: drawn(name, dimensions) for name, dimensions in shapes.items()}


def write_bert(
    path: Path,
    weights: Mapping[str, Array],
    vocabulary: Vocabulary,
    shape: BertShape,
    *,
    pooling: PoolingType | None = PoolingType.MEAN,
    quantization: QuantName = "F32",
    name: str = "tiny-bert",
) -> Path:
    """Write the model. Matrices are stored as ``quantization``, vectors and positions as F32. Gives ``path`` back."""
    writer: Any = GGUFWriter(path, "bert")
    writer.add_name(name)
    writer.add_context_length(shape.n_ctx_train)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_layer_norm_eps(shape.epsilon)
    writer.add_causal_attention(False)
    if pooling is not None:
        writer.add_pooling_type(pooling)
    if "cls.output.weight" in weights:
        writer.add_classifier_output_labels(["score"])
    writer.add_file_type(FILE_TYPES[quantization])
    for key, field in vocabulary.fields.items():
        writer.add_key_value(key, field.value, field.type, field.element_type)
    kind = GGMLQuantizationType[quantization]
    for tensor, values in weights.items():
        plain = values.ndim == 1 or tensor in {"position_embd.weight", "token_types.weight"}
        if plain or kind is GGMLQuantizationType.F32:
            writer.add_tensor(tensor, values.astype(np.float32))
        else:
            writer.add_tensor(tensor, encode(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# ── the reference ─────────────────────────────────────────────────────────────────────────────


def hidden_states(weights: Mapping[str, Array], shape: BertShape, tokens: Sequence[int]) -> Array:
    """The last layer's output for each token [n, width]: BERT (arXiv 1810.04805) with exact GELU, in float64."""
    w = {name: values.astype(np.float64) for name, values in weights.items()}

    def linear(x: Array, name: str) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + shape.epsilon)
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    n, heads = len(tokens), shape.heads
    x = w["token_embd.weight"][list(tokens)] + w["token_types.weight"][0] + w["position_embd.weight"][:n]
    x = norm(x, "token_embd_norm")
    for layer in range(shape.layers):
        block = f"blk.{layer}."
        q, k, v = (linear(x, f"{block}attn_{one}").reshape(n, heads, -1).transpose(1, 0, 2) for one in ("q", "k", "v"))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        mixed = (shares @ v).transpose(1, 0, 2).reshape(n, -1)
        x = norm(linear(mixed, f"{block}attn_output") + x, f"{block}attn_output_norm")
        up = linear(x, f"{block}ffn_up")
        active = up * 0.5 * (1 + np.vectorize(erf)(up / np.sqrt(2)))
        x = norm(linear(active, f"{block}ffn_down") + x, f"{block}layer_output_norm")
    return x


def reference_vector(
    weights: Mapping[str, Array], shape: BertShape, tokens: Sequence[int], pooling: PoolingType = PoolingType.MEAN
) -> Array:
    """The text's vector, of length 1."""
    states = hidden_states(weights, shape, tokens)
    pooled = {PoolingType.MEAN: states.mean(0), PoolingType.CLS: states[0], PoolingType.LAST: states[-1]}[pooling]
    return pooled / np.linalg.norm(pooled)


def reference_score(weights: Mapping[str, Array], shape: BertShape, tokens: Sequence[int]) -> float:
    """What the head says of a pair: a dense layer with tanh over the first token, and a projection to one number."""
    first = hidden_states(weights, shape, tokens)[0]
    inner = np.tanh(weights["cls.weight"].astype(np.float64) @ first + weights["cls.bias"])
    return float((weights["cls.output.weight"].astype(np.float64) @ inner + weights["cls.output.bias"])[0])


# ── for benchmarks ────────────────────────────────────────────────────────────────────────────


def minilm(quantization: QuantName = "Q8_0", seed: int = 0) -> Path:
    """The cached file of a model in MiniLM's shape, with the vocabulary of bge, made on the first call (a second)."""
    path = cache_dir() / "models" / f"minilm-{quantization}-{seed}-{_FORMAT}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        vocabulary = Vocabulary.from_gguf(vocabulary_file("bert-bge"))
        weights = bert_weights(MINILM, vocabulary.n_tokens, seed=seed)
        partial = path.with_name(path.name + ".partial")
        write_bert(partial, weights, vocabulary, MINILM, quantization=quantization, name="minilm").replace(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.models.bert_model", description=str(__doc__).split("\n")[0])
    parser.add_argument("--quantization", choices=get_args(QuantName), default="Q8_0")
    try:
        print(minilm(parser.parse_args().quantization))
    except SourceMissing as exc:
        raise SystemExit(f"bert_model: {exc}") from exc


if __name__ == "__main__":
    main()
