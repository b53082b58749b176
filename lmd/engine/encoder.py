"""llama.cpp where it computes vectors: the context of an embedding model, and LoRA adapters over any context.

As `lmd.engine.llama`, whose rules hold here too: everything blocks and belongs to the one compute thread.
"""

import ctypes
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import llama_cpp.llama_cpp as _lib
import numpy as np
import numpy.typing as npt

from lmd.engine.batch import Batch
from lmd.engine.context import ComputeParams, NativeContext
from lmd.engine.llama import Model
from lmd.engine.vocabulary import Vocab
from lmd.errors import InvalidRequest, LoadFailed
from lmd.loading import Adapter, Pooling

Vectors = npt.NDArray[np.float32]

_POOLING: Final[dict[int, Pooling]] = {
    _lib.LLAMA_POOLING_TYPE_MEAN: "mean",
    _lib.LLAMA_POOLING_TYPE_CLS: "cls",
    _lib.LLAMA_POOLING_TYPE_LAST: "last",
    _lib.LLAMA_POOLING_TYPE_RANK: "rank",
}


class EncoderContext(NativeContext):
    """Computes one vector (or score) for each sequence of a batch, and remembers nothing.

    ``params.n_batch`` is also the longest text. Raises as `NativeContext` does.
    """

    def __init__(self, model: Model, params: ComputeParams) -> None:
        native = _lib.llama_context_default_params()
        native.n_ctx = params.n_batch
        native.embeddings = True
        if pooling_of(model) is None:
            native.pooling_type = _lib.LLAMA_POOLING_TYPE_MEAN
        super().__init__(
            model,
            native,
            params,
            purpose=f"texts of {params.n_batch} tokens",
            hint="Load with a smaller context_length or batch.",
        )
        self.pooling = _POOLING[_lib.llama_pooling_type(self.pointer)]
        self.n_cells = params.n_batch if self.memory else 0
        """Of the KV cache that models made from generating ones have."""
        is_rank = self.pooling == "rank"
        self.width: int = (_lib.llama_model_n_cls_out if is_rank else _lib.llama_model_n_embd_out)(model.pointer)
        self._compute = _lib.llama_encode if _lib.llama_model_has_encoder(model.pointer) else _lib.llama_decode

    def compute(self, batch: Batch, n_sequences: int) -> Vectors:
        """The vectors [n_sequences, width] of sequences 0, 1, … of the batch. RuntimeError when llama.cpp fails."""
        if self.memory:
            _lib.llama_memory_clear(self.memory, False)
        batch.native.n_tokens = batch.n
        code = self._compute(self.pointer, batch.native)
        if code != 0:
            raise RuntimeError(f"llama.cpp could not compute {batch.n} tokens of {n_sequences} texts: code {code}")
        vectors = np.empty((n_sequences, self.width), np.float32)
        for sequence in range(n_sequences):
            pointer = _lib.llama_get_embeddings_seq(self.pointer, sequence)
            if not pointer:
                raise RuntimeError(f"llama.cpp gave no vector for text {sequence} of {n_sequences}")
            vectors[sequence] = np.ctypeslib.as_array(pointer, (self.width,))
        return vectors


def pooling_of(model: Model) -> Pooling | None:
    """What the header says; None where it says nothing, or "none"."""
    value = model.meta("{arch}.pooling_type")
    return _POOLING.get(int(value)) if value is not None and value.isdigit() else None


# ── prompts ───────────────────────────────────────────────────────────────────────────────────


def with_special(vocab: Vocab, text: str, *, special: bool) -> list[int]:
    """``text`` between the tokens that the vocabulary wants there ([CLS] … [SEP]; BOS; EOS).

    ``special``: texts of control tokens in it become those tokens.
    """
    data = text.encode("utf-8", "surrogatepass")
    size = len(data) + 16
    buffer = (ctypes.c_int32 * size)()
    n: int = _lib.llama_tokenize(vocab.pointer, data, len(data), buffer, size, True, special)
    if n < 0:
        raise InvalidRequest("A text is too long to tokenize.", param="input")
    return buffer[:n]


class PairTemplate:
    """How a reranker wants a query and a document put together: the model's "rerank" template, where it has one, else
    [BOS] query [EOS] [SEP] document [EOS] with those of the three that the vocabulary adds by itself."""

    def __init__(self, model: Model) -> None:
        self._vocab = vocab = model.vocab
        template: bytes | None = _lib.llama_model_chat_template(model.pointer, b"rerank")
        self._template = template.decode("utf-8", "replace") if template else ""
        pointer = vocab.pointer
        eos = vocab.eos if vocab.eos >= 0 else _lib.llama_vocab_sep(pointer)
        self._before = [vocab.bos] if vocab.add_bos else []
        self._end = [eos] if _lib.llama_vocab_get_add_eos(pointer) else []
        self._between = [
            *self._end,
            *([_lib.llama_vocab_sep(pointer)] if _lib.llama_vocab_get_add_sep(pointer) else []),
        ]

    def tokens(self, query: str, documents: Sequence[str]) -> list[list[int]]:
        """One pair for each document. Texts of control tokens become those tokens only where there is a template: it
        has such tokens itself, and cutting it apart would change the tokens at the seams."""
        if self._template:
            # One pass: a query that mentions "{document}" stays as it is.
            before, *rest = self._template.split("{query}")
            return [self._filled(before, rest, query, document) for document in documents]
        encode = self._vocab.tokenize
        head = [*self._before, *encode(query, special=False), *self._between]
        return [[*head, *encode(document, special=False), *self._end] for document in documents]

    def _filled(self, before: str, rest: Sequence[str], query: str, document: str) -> list[int]:
        pieces = [piece.replace("{document}", document) for piece in (before, *rest)]
        return self._vocab.tokenize(query.join(pieces), special=True)


# ── adapters ──────────────────────────────────────────────────────────────────────────────────


def apply_adapters(model: Model, context: NativeContext, adapters: Sequence[Adapter]) -> int:
    """Lay LoRA adapters over ``context``; they are freed with the model. Bytes of their files.

    Raises LoadFailed where a file is not there, or is no adapter for this model.
    """
    if not adapters:
        return 0
    pointers: Any = (_lib.llama_adapter_lora_p_ctypes * len(adapters))()
    log = model.backend.log
    for index, adapter in enumerate(adapters):
        name = Path(adapter.path).name
        if not Path(adapter.path).is_file():
            raise LoadFailed(
                f"There is no LoRA adapter {adapter.path}.", hint="Mend 'adapters' in the preset's [load]."
            )
        log.errors.clear()
        pointer = _lib.llama_adapter_lora_init(model.pointer, adapter.path.encode())
        if not pointer:
            reason = log.last_error() or "llama.cpp gave no reason"
            raise LoadFailed(
                f"llama.cpp cannot lay {name} over {Path(model.path).name}: {reason}.",
                hint="An adapter fits the model that it was trained on, converted with convert_lora_to_gguf.py.",
            )
        if _lib.llama_adapter_get_alora_n_invocation_tokens(pointer):
            sys.stderr.write(f"<4>{name} wants to be in force from certain tokens on; here it always is.\n")
        pointers[index] = pointer
    scales = (ctypes.c_float * len(adapters))(*(adapter.scale for adapter in adapters))
    if _lib.llama_set_adapters_lora(context.pointer, pointers, len(adapters), scales) != 0:
        raise LoadFailed("llama.cpp refuses these LoRA adapters together.", hint="Leave out all but one.")
    return sum(Path(adapter.path).stat().st_size for adapter in adapters)
