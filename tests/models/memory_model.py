"""Small random models that remember otherwise than by a plain KV cache: recurrent, hybrid, and with sliding windows.

Their weights are such that what they say depends on all that they were told: the embedding is small beside what the
layers add to it, and the output matrix is not the embedding's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType

from tests.models.gguf_model import Array, Vocabulary, WeightSource, write_tensors
from tests.models.random_model import random_weights

MemoryKind = Literal["recurrent", "hybrid", "sliding"]
KINDS: tuple[MemoryKind, ...] = get_args(MemoryKind)

WIDTH, FEED_FORWARD, HEADS, KV_HEADS = 64, 96, 4, 2
HEAD_DIM = WIDTH // HEADS
KV_WIDTH = KV_HEADS * HEAD_DIM
INNER, STATE, CONV, RANK = 2 * WIDTH, 16, 4, 8
WINDOW = 16
"""Tokens that the sliding layers look back."""
N_CTX_TRAIN = 8192

Tensors = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class _Recipe:
    architecture: str
    layers: int
    block: Callable[[int], Tensors]
    """A layer's tensors, without the names' common beginning."""
    metadata: Callable[[Any], None]


def write_memory_model(path: Path, kind: MemoryKind, vocabulary: Vocabulary, seed: int = 0) -> Path:
    """Write the model (F32) to ``path``, and give that back."""
    recipe = _RECIPES[kind]
    n_vocab = vocabulary.n_tokens
    tensors: Tensors = {
        "token_embd.weight": (n_vocab, WIDTH),
        "output_norm.weight": (WIDTH,),
        "output.weight": (n_vocab, WIDTH),
    }
    for layer in range(recipe.layers):
        tensors |= {f"blk.{layer}.{name}": shape for name, shape in recipe.block(layer).items()}

    def add_metadata(writer: Any) -> None:
        writer.add_context_length(N_CTX_TRAIN)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(recipe.layers)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_file_type(LlamaFileType.ALL_F32)
        recipe.metadata(writer)

    write_tensors(
        path,
        architecture=recipe.architecture,
        name=kind,
        vocabulary=vocabulary,
        add_metadata=add_metadata,
        tensors=tensors,
        weights=_weights(seed),
        kind=GGMLQuantizationType.F32,
    )
    return path


def _weights(seed: int) -> WeightSource:
    plain = random_weights(seed)

    def source(name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith("ssm_a"):  # decay rates, from slow to fast
            return np.broadcast_to(-np.linspace(0.05, 1.0, shape[1], dtype=np.float32), shape).copy()
        if name.endswith("ssm_d"):
            return np.ones(shape, np.float32)
        values = plain(name, shape)
        if name == "token_embd.weight":
            values *= np.float32(0.2)
        return values

    return source


# ── recurrent: Mamba ──────────────────────────────────────────────────────────────────────────


def _mamba(_layer: int) -> Tensors:
    return {
        "attn_norm.weight": (WIDTH,),
        "ssm_in.weight": (2 * INNER, WIDTH),
        "ssm_conv1d.weight": (INNER, CONV),
        "ssm_conv1d.bias": (INNER,),
        "ssm_x.weight": (RANK + 2 * STATE, INNER),
        "ssm_dt.weight": (INNER, RANK),
        "ssm_dt.bias": (INNER,),
        "ssm_a": (INNER, STATE),
        "ssm_d": (INNER,),
        "ssm_out.weight": (WIDTH, INNER),
    }


def _mamba_metadata(writer: Any) -> None:
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    _ssm_metadata(writer)


def _ssm_metadata(writer: Any) -> None:
    writer.add_ssm_conv_kernel(CONV)
    writer.add_ssm_inner_size(INNER)
    writer.add_ssm_state_size(STATE)
    writer.add_ssm_time_step_rank(RANK)


# ── hybrid: Jamba, attention in every second layer ────────────────────────────────────────────


def _jamba(layer: int) -> Tensors:
    if layer % 2 == 0:
        norms = {"ssm_dt_norm.weight": (RANK,), "ssm_b_norm.weight": (STATE,), "ssm_c_norm.weight": (STATE,)}
        return {**_mamba(layer), **norms, **_feed_forward()}
    return {"attn_norm.weight": (WIDTH,), **_attention(), **_feed_forward()}


def _jamba_metadata(writer: Any) -> None:
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([0, KV_HEADS, 0, KV_HEADS])
    _ssm_metadata(writer)


def _attention() -> Tensors:
    return {
        "attn_q.weight": (WIDTH, WIDTH),
        "attn_k.weight": (KV_WIDTH, WIDTH),
        "attn_v.weight": (KV_WIDTH, WIDTH),
        "attn_output.weight": (WIDTH, WIDTH),
    }


def _feed_forward() -> Tensors:
    return {
        "ffn_norm.weight": (WIDTH,),
        "ffn_gate.weight": (FEED_FORWARD, WIDTH),
        "ffn_up.weight": (FEED_FORWARD, WIDTH),
        "ffn_down.weight": (WIDTH, FEED_FORWARD),
    }


# ── sliding window: Gemma 3, the sixth layer looks back to the beginning ──────────────────────


def _gemma(_layer: int) -> Tensors:
    return {
        "attn_norm.weight": (WIDTH,),
        **_attention(),
        "attn_q_norm.weight": (HEAD_DIM,),
        "attn_k_norm.weight": (HEAD_DIM,),
        "post_attention_norm.weight": (WIDTH,),
        **_feed_forward(),
        "post_ffw_norm.weight": (WIDTH,),
    }


def _gemma_metadata(writer: Any) -> None:
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_sliding_window(WINDOW)
    writer.add_rope_freq_base(10000.0)


_RECIPES: dict[MemoryKind, _Recipe] = {
    "recurrent": _Recipe("mamba", 3, _mamba, _mamba_metadata),
    "hybrid": _Recipe("jamba", 4, _jamba, _jamba_metadata),
    "sliding": _Recipe("gemma3", 6, _gemma, _gemma_metadata),
}
