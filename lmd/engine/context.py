"""llama.cpp's contexts: what it computes with, and the memory of a model that generates.

A view of logits is valid until the next `Context.decode`.
"""

import ctypes
from dataclasses import dataclass
from typing import Any, Final

import llama_cpp.llama_cpp as _lib
import numpy as np
import numpy.typing as npt

from lmd.engine.batch import Batch
from lmd.engine.llama import Model, bytes_of, libllama
from lmd.errors import InsufficientMemory, LoadFailed, Unsupported

Logits = npt.NDArray[np.float32]

CACHE_TYPES: Final = {
    "f32": _lib.GGML_TYPE_F32,
    "f16": _lib.GGML_TYPE_F16,
    "bf16": 30,  # GGML_TYPE_BF16: the bindings leave its name out
    "q8_0": _lib.GGML_TYPE_Q8_0,
    "q5_1": _lib.GGML_TYPE_Q5_1,
    "q5_0": _lib.GGML_TYPE_Q5_0,
    "q4_1": _lib.GGML_TYPE_Q4_1,
    "q4_0": _lib.GGML_TYPE_Q4_0,
    "iq4_nl": _lib.GGML_TYPE_IQ4_NL,
}

#: As an address: making a typed pointer of it, for each token, takes longer than the call.
_logits_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(("llama_get_logits_ith", libllama))


class NoCells(Exception):
    """The KV cache has no room for this batch; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeParams:
    """What every context is asked for. ``n_batch``: the most tokens that are computed together."""

    n_batch: int
    n_seq_max: int
    n_threads: int
    flash_attention: str | bool = "auto"
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0
    streams: bool = False
    """Each sequence has its own part of the cache, which attention then passes over alone; else all share one."""


class NativeContext:
    """llama.cpp's context over ``model``, made as ``native`` and ``params`` say.

    Raises InsufficientMemory when llama.cpp cannot allocate it: there is no memory for ``purpose``, and ``hint`` says
    what would take less. LoadFailed on other refusals.
    """

    def __init__(self, model: Model, native: Any, params: ComputeParams, *, purpose: str, hint: str) -> None:
        native.n_batch = native.n_ubatch = params.n_batch
        native.n_seq_max = params.n_seq_max
        native.n_threads = native.n_threads_batch = params.n_threads
        native.kv_unified = not params.streams
        native.flash_attn_type = {"auto": -1, False: 0, True: 1}[params.flash_attention]
        native.rope_freq_base = params.rope_freq_base
        native.rope_freq_scale = params.rope_freq_scale
        native.no_perf = True
        log = model.backend.log
        log.errors.clear()
        before = log.buffers.copy()
        self.pointer = _lib.llama_init_from_model(model.pointer, native)
        if not self.pointer:
            reason = log.last_error() or "llama.cpp gave no reason"
            if "alloc" in reason or "memory" in reason:
                raise InsufficientMemory(f"No memory for {purpose}: {reason}.", hint=hint)
            raise LoadFailed(f"llama.cpp cannot make a context: {reason}.")
        self.memory = _lib.llama_get_memory(self.pointer)
        """None: this model remembers nothing from one batch to the next."""
        self.flash_attention = log.flash_attention if params.flash_attention == "auto" else bool(params.flash_attention)
        self.n_threads = params.n_threads
        """That compute now; `ComputeParams.n_threads` at most."""
        self._most_threads = params.n_threads
        self._backend = model.backend
        self._buffers = log.buffers - before
        self.kv_bytes = bytes_of(self._buffers, "KV", "RS")
        self.compute_bytes = bytes_of(self._buffers, "compute", "output")

    def share_cores(self, n_busy: int) -> None:
        """Compute with a part of the threads from the next batch on: ``n_busy`` instances work at once."""
        n = max(1, self._most_threads // n_busy)
        if n != self.n_threads:
            _lib.llama_set_n_threads(self.pointer, n, n)
            self.n_threads = n

    def bytes_on(self, device: str) -> int:
        """Cache and compute buffers on ``device``."""
        return bytes_of(self._buffers, "KV", "RS", "compute", "output", where=self._backend.buffers_of(device))

    def compute_bytes_on(self, device: str) -> int:
        """What of `compute_bytes` is on ``device``."""
        return bytes_of(self._buffers, "compute", "output", where=self._backend.buffers_of(device))

    def close(self) -> None:
        if self.pointer:
            _lib.llama_free(self.pointer)
            self.pointer = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams(ComputeParams):
    n_cells: int
    n_outputs_max: int
    cache_type: str = "f16"


class Context(NativeContext):
    """A model's memory and compute buffers for ``n_seq_max`` sequences over a cache of ``n_cells`` in all.

    Raises as `NativeContext` does, and Unsupported for a model that has no such memory.
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        native = _lib.llama_context_default_params()
        native.n_ctx = params.n_cells
        # Bounds the logits buffers: n_batch rows of a 152 k vocabulary would be 300 MB.
        native.n_outputs_max = native.n_outputs_max_per_seq = max(params.n_outputs_max, params.n_seq_max)
        native.swa_full = True  # a sliding-window cache that is cut short forgets what prefix reuse wants
        native.type_k = native.type_v = CACHE_TYPES[params.cache_type]
        super().__init__(
            model,
            native,
            params,
            purpose=f"{params.n_cells} KV cells",
            hint="Load with a smaller context_length or parallel, or with kv_cache_type = 'q8_0'.",
        )
        if not self.memory:
            raise Unsupported("This model does not write token after token, and lmd generates in no other way.")
        self.params = params
        self.n_vocab = model.vocab.n_tokens
        self._row = ctypes.c_float * self.n_vocab
        self.n_cells: int = _lib.llama_n_ctx(self.pointer)
        self.n_seq_max = params.n_seq_max
        self.streams = params.streams
        self._copies: list[tuple[int, int]] = []
        """From which stream to which the next `decode` copies, before it computes."""
        self._window: int = _lib.llama_model_n_swa(model.pointer)

    def decode(self, batch: Batch) -> None:
        """Compute the batch; a GPU may still be at it on return (`wait`).

        Raises NoCells, or RuntimeError when llama.cpp fails for good.
        """
        batch.native.n_tokens = batch.n
        code = _lib.llama_decode(self.pointer, batch.native)
        self._copies.clear()
        if code == 1:
            raise NoCells
        if code != 0:
            raise RuntimeError(f"llama_decode failed with code {code}")

    def wait(self) -> None:
        """Until all that was to be computed is."""
        _lib.llama_synchronize(self.pointer)

    def logits(self, index: int) -> Logits:
        """The logits of batch entry ``index`` [n_vocab]; writable, valid until the next decode."""
        address = _logits_address(self.pointer, index)
        if not address:
            raise RuntimeError(f"batch entry {index} has no logits")
        return np.frombuffer(memoryview(self._row.from_address(address)), dtype=np.float32)

    def cut(self, seq_id: int, start: int) -> bool:
        """Forget positions from ``start`` on; False where this memory cannot be cut there."""
        return bool(_lib.llama_memory_seq_rm(self.memory, seq_id, start, -1))

    def whole_at(self, seq_id: int, n: int) -> bool:
        """Whether a sequence could go on after its first ``n`` positions.

        Where a layer has a sliding window, llama.cpp gives away cells that the window has passed, also of the
        full-size cache: what is left of the sequence then begins at some later position.
        """
        if not self._window:
            return True
        first: int = _lib.llama_memory_seq_pos_min(self.memory, seq_id)
        return 0 <= first <= max(0, n - self._window)

    def share(self, source: int, target: int, n: int) -> None:
        """Let the empty ``target`` hold the first ``n`` positions of ``source`` too (-1: all).

        No data is copied, but from stream to stream, by the next `decode`, all that there is.
        """
        if not self.streams:
            _lib.llama_memory_seq_cp(self.memory, source, target, 0, n)
            return
        _lib.llama_memory_seq_cp(self.memory, source, target, -1, -1)
        self._copies.append((source, target))
        if n >= 0:
            _lib.llama_memory_seq_rm(self.memory, target, n, -1)

    def is_copying(self, seq_id: int) -> bool:
        """Whether the next `decode` copies this stream, or to it."""
        return any(seq_id in pair for pair in self._copies)

    def save(self, seq_id: int) -> bytes:
        """All that the memory holds of a sequence, as llama.cpp's own state data; empty where it cannot say."""
        if any(seq_id == target for _, target in self._copies):
            return b""
        size: int = _lib.llama_state_seq_get_size(self.pointer, seq_id)
        buffer = (ctypes.c_uint8 * size)()
        written: int = _lib.llama_state_seq_get_data(self.pointer, buffer, size, seq_id)
        return bytes(memoryview(buffer)[:written])

    def restore(self, seq_id: int, state: bytes) -> bool:
        """Fill the empty sequence ``seq_id`` with what `save` gave. False: no room, or not from this context.

        Not while it is copied (`is_copying`): the copy would come after it.
        """
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(_lib.llama_state_seq_set_data(self.pointer, buffer, len(state), seq_id))
