"""llama.cpp as the engine sees it: backend, model, vocabulary, context, batch. The only importer of `llama_cpp`.

Everything here blocks and belongs to the worker's one compute thread. Pointers stay inside;
what leaves are numbers, bytes and numpy views. A view of logits is valid until the next `Context.decode`.
"""

import contextlib
import ctypes
import functools
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import llama_cpp as _package
import llama_cpp.llama_cpp as _lib
import numpy as np
import numpy.typing as npt

from lmd.engine import variants
from lmd.errors import InsufficientMemory, InvalidRequest, LoadFailed, Unsupported
from lmd.loading import Device, LoadParams, WorkerFacts

# llguidance calls a deprecated name for each of 150,000 tokens.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="llama_cpp")

Logits = npt.NDArray[np.float32]

#: libllama with what it links: ggml's registry of devices, its GGUF reader. Not `llama_cpp._ggml.libggml`: wheels hold
#: copies where the build had links, so that is a second libggml, whose registry llama.cpp never looks at.
libllama: Final[ctypes.CDLL] = _lib._lib

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
#: Bytes of one cached element, block scales included.
CACHE_BYTES: Final = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q5_1": 24 / 32,
    "q5_0": 22 / 32,
    "q4_1": 20 / 32,
    "q4_0": 18 / 32,
    "iq4_nl": 18 / 32,
}

# ── log ───────────────────────────────────────────────────────────────────────────────────────

#: ggml_log_level → syslog priority; 5 continues the previous line. llama.cpp's INFO is a page for each model, so it is
#: DEBUG to the daemon; its DEBUG names every tensor of every graph and is left out (8).
_PRIORITY: Final = {0: 6, 1: 8, 2: 7, 3: 4, 4: 3}


class NativeLog:
    """llama.cpp's log: written to stderr as ``<priority>text`` lines, and searched for buffer sizes.

    llama.cpp tells what it allocated only there ("CPU KV buffer size = 12.00 MiB").
    """

    _BUFFER = re.compile(r"(\S+) +(KV|RS|compute|output|model) buffer size *= *([0-9.]+) MiB")
    _CACHE = re.compile(r"size = *([0-9.]+) MiB \(.*\), K \(")

    def __init__(self) -> None:
        self.buffers: Counter[tuple[str, str]] = Counter()
        """Bytes by kind and by the buffer's name ("CUDA0", "CPU_Mapped")."""
        self.cache_bytes = 0
        """Of all KV caches so far, those of sketches too, which allocate none."""
        self.errors: list[str] = []
        self.flash_attention = True
        """What llama.cpp decided for the context made last, where it was left to decide."""
        self.sketching = False
        """Nothing is loaded really: nothing that llama.cpp warns of concerns anybody."""
        self._line = ""
        self._priority = 7

        @_lib.llama_log_callback  # type: ignore[untyped-decorator]
        def callback(level: int, text: bytes, _user: Any) -> None:
            self._feed(level, text.decode("utf-8", "replace"))

        self._callback = callback  # keeps the C function pointer alive
        _lib.llama_log_set(callback, ctypes.c_void_p(0))

    def _feed(self, level: int, text: str) -> None:
        if level in _PRIORITY:
            self._priority = _PRIORITY[level]
        self._line += text
        *lines, self._line = self._line.split("\n")
        for line in lines:
            if not line.strip(" ."):
                continue
            if found := self._BUFFER.search(line):
                self.buffers[found[2], found[1]] += int(float(found[3]) * 1024 * 1024)
            if found := self._CACHE.search(line):
                self.cache_bytes += int(float(found[1]) * 1024 * 1024)
            if "Flash Attention " in line:
                self.flash_attention = "enabled" in line
            if self._priority <= 3:
                self.errors = [*self.errors[-7:], line.strip()]
            if self._priority < 8:
                sys.stderr.write(f"<{7 if self.sketching else self._priority}>{line}\n")
        if lines:
            sys.stderr.flush()

    def last_error(self) -> str:
        return self.errors[-1] if self.errors else ""


def bytes_of(buffers: Mapping[tuple[str, str], int], *kinds: str, where: str | None = None) -> int:
    """The bytes of all buffers of these ``kinds``, or of those with the name ``where``."""
    return sum(size for (kind, name), size in buffers.items() if kind in kinds and where in (None, name))


class Backend:
    """The process-wide state of llama.cpp. Make one, first."""

    def __init__(self) -> None:
        self.log = NativeLog()
        variants.load(libllama, Path(_package.__file__).parent)
        _lib.llama_backend_init()
        self.offloads = any(device.kind in ("gpu", "igpu") for device in self.devices())

    def facts(self) -> WorkerFacts:
        return WorkerFacts(
            pid=os.getpid(),
            llama_cpp_python=_package.__version__,
            llama_cpp=_build(),
            system_info=_text(_lib.llama_print_system_info()).strip(),
            devices=self.devices(),
        )

    def devices(self) -> tuple[Device, ...]:
        """With the memory that is free now. The first call makes a GPU backend take its own (CUDA: a context)."""
        return tuple(_devices())

    def buffers_of(self, device: str) -> str:
        """The name of the buffers in the memory of ``device`` (in llama.cpp's log; mostly the device's own)."""
        pointer = libllama.ggml_backend_dev_by_name(device.encode())
        return _text(libllama.ggml_backend_buft_name(libllama.ggml_backend_dev_buffer_type(pointer)))


def _build() -> str:
    """llama.cpp's version and commit."""
    commit = libllama.ggml_commit
    commit.restype = ctypes.c_char_p
    return f"{_text(_lib.llama_version())} ({_text(commit()) or 'unknown commit'})"


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _declare_devices() -> None:
    """Types of what is used of ggml-backend.h, which the bindings do not wrap."""
    size, pointer, text = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("ggml_backend_dev_count", size, []),
        ("ggml_backend_dev_get", pointer, [size]),
        ("ggml_backend_dev_by_name", pointer, [text]),
        ("ggml_backend_dev_name", text, [pointer]),
        ("ggml_backend_dev_description", text, [pointer]),
        ("ggml_backend_dev_type", ctypes.c_int, [pointer]),
        ("ggml_backend_dev_memory", None, [pointer, ctypes.POINTER(size), ctypes.POINTER(size)]),
        ("ggml_backend_dev_buffer_type", pointer, [pointer]),
        ("ggml_backend_buft_name", text, [pointer]),
    ):
        function = getattr(libllama, name)
        function.restype, function.argtypes = result, arguments


_declare_devices()


def _devices() -> Iterator[Device]:
    """The devices in ggml's registry."""
    kinds = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel"}
    for i in range(libllama.ggml_backend_dev_count()):
        device = libllama.ggml_backend_dev_get(i)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        libllama.ggml_backend_dev_memory(device, ctypes.byref(free), ctypes.byref(total))
        yield Device(
            name=_text(libllama.ggml_backend_dev_name(device)),
            description=_text(libllama.ggml_backend_dev_description(device)),
            kind=kinds.get(libllama.ggml_backend_dev_type(device), "accel"),  # type: ignore[arg-type]
            memory_total=total.value,
            memory_free=free.value,
        )


# ── vocabulary ────────────────────────────────────────────────────────────────────────────────


_NAMED_ENDS = ("eos", "eot", "fim_pad", "fim_rep", "fim_sep")
"""What a model's metadata may name, whatever kind of token it is, and llama.cpp then ends a generation at."""


class Vocab:
    """Tokens to bytes and back."""

    def __init__(self, model: Any) -> None:
        self.pointer = _lib.llama_model_get_vocab(model)
        self.n_tokens: int = _lib.llama_vocab_n_tokens(self.pointer)
        self.bos: int = _lib.llama_vocab_bos(self.pointer)
        self.eos: int = _lib.llama_vocab_eos(self.pointer)
        self.add_bos: bool = _lib.llama_vocab_get_add_bos(self.pointer)
        self._pieces: dict[int, bytes] = {}
        self._eog: dict[int, bool] = {}

    @property
    def fim(self) -> tuple[int, int, int] | None:
        """The tokens before the prefix, before the suffix and before the middle; None: not trained to fill in."""
        tokens = tuple(getattr(_lib, f"llama_vocab_fim_{part}")(self.pointer) for part in ("pre", "suf", "mid"))
        return tokens if min(tokens) >= 0 else None

    def is_eog(self, token: int) -> bool:
        known = self._eog.get(token)
        if known is None:
            known = self._eog[token] = _lib.llama_vocab_is_eog(self.pointer, token)
        return known

    @functools.cached_property
    def eog_tokens(self) -> tuple[int, ...]:
        """Every token that ends a generation.

        llama.cpp makes control tokens of those that it knows by their text; the model's metadata may name others.
        """
        named = (getattr(_lib, f"llama_vocab_{name}")(self.pointer) for name in _NAMED_ENDS)
        return tuple(token for token in sorted({*self.control_ids, *named}) if token >= 0 and self.is_eog(token))

    def is_control(self, token: int) -> bool:
        return bool(_lib.llama_vocab_is_control(self.pointer, token))

    def text(self, token: int) -> str:
        """The token as the vocabulary writes it; "" for none (-1)."""
        return _text(_lib.llama_vocab_get_text(self.pointer, token)) if token >= 0 else ""

    def piece(self, token: int) -> bytes:
        """The token's bytes in running text; empty for control tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token, special=False)
        return known

    def special_piece(self, token: int) -> bytes:
        """The token's bytes, the texts of control tokens included."""
        return self._piece(token, special=True)

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n: int = _lib.llama_token_to_piece(self.pointer, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``, no BOS added. ``special``: texts of control tokens become those tokens."""
        data = text.encode("utf-8", "surrogatepass")
        size = max(16, len(data) // 2)
        while True:
            buffer = (ctypes.c_int32 * size)()
            n: int = _lib.llama_tokenize(self.pointer, data, len(data), buffer, size, False, special)
            if n >= 0:
                return buffer[:n]
            if n == -(2**31):
                raise InvalidRequest("The prompt is too long to tokenize.", param="messages")
            size = -n

    def control_texts(self) -> tuple[str, ...]:
        """Texts that `tokenize` with ``special`` takes for control tokens, in the order of their ids."""
        return tuple(map(self.text, self.control_ids))

    @functools.cached_property
    def control_ids(self) -> tuple[int, ...]:
        """Tokens that `tokenize` finds only with ``special``: control tokens and the unknown token.

        Asking for each of 152 k tokens takes a quarter of a second; llama.cpp writes a run of them with and without
        its control tokens in next to no time, and only runs where that differs are looked into.
        """
        ids = np.arange(self.n_tokens, dtype=np.int32)
        special = _lib.LLAMA_TOKEN_ATTR_CONTROL | _lib.LLAMA_TOKEN_ATTR_UNKNOWN
        found: list[int] = []

        def size(first: int, last: int, unparse: bool) -> int:
            run = ids[first:].ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n: int = _lib.llama_detokenize(self.pointer, run, last - first, None, 0, False, unparse)
            return n

        def search(first: int, last: int) -> None:
            if size(first, last, True) == size(first, last, False):
                return
            if last - first > 8:
                middle = (first + last) // 2
                search(first, middle)
                search(middle, last)
                return
            found.extend(
                token for token in range(first, last) if _lib.llama_vocab_get_attr(self.pointer, token) & special
            )

        for first in range(0, self.n_tokens, 512):
            search(first, min(first + 512, self.n_tokens))
        return tuple(found)

    def control_tokens(self, texts: Sequence[str]) -> frozenset[int]:
        """The tokens that each of ``texts`` is, where it is exactly one."""
        ids = (self.tokenize(text, special=True) for text in texts)
        return frozenset(found[0] for found in ids if len(found) == 1)


# ── model ─────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class SketchVocabulary:
    """As many tokens as the file's vocabulary has, without their texts: reading those takes longer than the rest."""

    architecture: str
    n_tokens: int
    """0: the file has no vocabulary to leave out."""

    def overrides(self) -> Any:
        """What makes llama.cpp read the file so: ``llama_model_kv_override[]``, ended by an empty key."""
        native = (_lib.llama_model_kv_override * 3)()
        if self.n_tokens:
            native[0].key = b"tokenizer.ggml.model"
            native[0].tag, native[0].value.val_str = _lib.LLAMA_KV_OVERRIDE_TYPE_STR, b"no_vocab"
            native[1].key = f"{self.architecture}.vocab_size".encode()
            native[1].tag, native[1].value.val_i64 = _lib.LLAMA_KV_OVERRIDE_TYPE_INT, self.n_tokens
        return native


class Model:
    """Weights and vocabulary. Raises LoadFailed with llama.cpp's own last words, InsufficientMemory where they say so.

    ``gpu_layers``: layers to offload; None: all. ``sketch``: plan the load only, without weights.
    """

    def __init__(
        self,
        backend: Backend,
        path: str,
        params: LoadParams,
        on_progress: Callable[[float], None] | None = None,
        *,
        gpu_layers: int | None = None,
        sketch: "SketchVocabulary | None" = None,
    ) -> None:
        if not Path(path).is_file():
            raise LoadFailed(f"There is no file {path}.", hint="'lmctl ls' shows the models that are there.")
        native = _lib.llama_model_default_params()
        if gpu_layers is not None:
            native.n_gpu_layers = gpu_layers
        nothing = (ctypes.c_void_p * 1)()
        if gpu_layers == 0:
            # Without this llama.cpp still takes VRAM: it computes long prompts there, with weights copied each time.
            native.devices = ctypes.cast(nothing, ctypes.c_void_p)
        native.load_mode = {
            (True, True): _lib.LLAMA_LOAD_MODE_MMAP_MLOCK,
            (True, False): _lib.LLAMA_LOAD_MODE_MMAP,
            (False, True): _lib.LLAMA_LOAD_MODE_MLOCK,
            (False, False): _lib.LLAMA_LOAD_MODE_NONE,
        }[params.mmap is not False, bool(params.mlock)]

        told = -1.0

        @_lib.llama_progress_callback  # type: ignore[untyped-decorator]
        def progress(fraction: float, _user: Any) -> bool:
            nonlocal told
            # llama.cpp calls for each tensor: hundredths are enough for a person.
            if on_progress and (fraction >= told + 0.01 or fraction == 1.0):
                told = fraction
                on_progress(fraction)
            return True

        native.progress_callback = progress
        if sketch is not None:
            native.no_alloc, native.load_mode = True, _lib.LLAMA_LOAD_MODE_NONE
            overrides = sketch.overrides()
            native.kv_overrides = overrides
        backend.log.errors.clear()
        before = backend.log.buffers.copy()
        self.pointer = _lib.llama_model_load_from_file(path.encode(), native)
        if not self.pointer:
            reason = backend.log.last_error() or "llama.cpp gave no reason"
            if "allocate" in reason:
                raise InsufficientMemory(
                    f"No memory for the weights of {Path(path).name}: {reason}.",
                    hint="Load with fewer layers in VRAM (--gpu N or auto), or unload another model.",
                )
            raise LoadFailed(
                f"llama.cpp cannot load {Path(path).name}: {reason}.",
                hint="'lmctl log' and the journal hold the whole of its output.",
            )
        self.path = path
        self.backend = backend
        self._buffers = backend.log.buffers - before
        self.vocab = Vocab(self.pointer)
        self.trained_context_length: int = _lib.llama_model_n_ctx_train(self.pointer)
        self.n_layers: int = _lib.llama_model_n_layer(self.pointer)
        self.n_embd: int = _lib.llama_model_n_embd(self.pointer)
        self.n_params: int = _lib.llama_model_n_params(self.pointer)
        self.size: int = _lib.llama_model_size(self.pointer)
        self.gpu_layers = 0 if gpu_layers == 0 or not backend.offloads else min(gpu_layers or 2**31, self.n_layers + 1)
        self.is_recurrent: bool = _lib.llama_model_is_recurrent(self.pointer)
        self.is_hybrid: bool = _lib.llama_model_is_hybrid(self.pointer)
        if _lib.llama_model_has_decoder(self.pointer) and _lib.llama_model_has_encoder(self.pointer):
            raise Unsupported("This model is an encoder and a decoder in one; lmd serves models that are either.")

    def bytes_on(self, device: str) -> int:
        """Weights on ``device``."""
        return bytes_of(self._buffers, "model", where=self.backend.buffers_of(device))

    def meta(self, key: str) -> str | None:
        """A scalar of the header as llama.cpp prints it; ``{arch}`` in ``key`` is filled in."""
        if "{arch}" in key:
            key = key.replace("{arch}", self.meta("general.architecture") or "")
        buffer = ctypes.create_string_buffer(1024)
        n = _lib.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if n >= 0 else None

    def close(self) -> None:
        if self.pointer:
            _lib.llama_model_free(self.pointer)
            self.pointer = None


# ── batch ─────────────────────────────────────────────────────────────────────────────────────


class Batch:
    """Up to ``capacity`` tokens for one `Context.decode`, each of one sequence. Reused from step to step."""

    def __init__(self, capacity: int) -> None:
        self.native = _lib.llama_batch_init(capacity, 0, 1)
        self.capacity = capacity
        self.n = 0
        as_array = np.ctypeslib.as_array
        self._token = as_array(self.native.token, (capacity,))
        self._pos = as_array(self.native.pos, (capacity,))
        as_array(self.native.n_seq_id, (capacity,))[:] = 1
        # seq_id is an array of pointers to one-element arrays: view those elements as one address list.
        self._seq = [self.native.seq_id[i] for i in range(capacity)]
        self._output = as_array(self.native.logits, (capacity,))

    def clear(self) -> None:
        self.n = 0

    def add(self, tokens: Sequence[int], start: int, seq_id: int, n_outputs: int) -> int:
        """Append ``tokens`` at positions from ``start``; the last ``n_outputs`` give logits. Index of the first."""
        first, last = self.n, self.n + len(tokens)
        self._token[first:last] = tokens
        self._pos[first:last] = range(start, start + len(tokens))
        self._output[first:last] = 0
        if n_outputs:
            self._output[last - n_outputs : last] = 1
        for pointer in self._seq[first:last]:
            pointer[0] = seq_id
        self.n = last
        return first

    def close(self) -> None:
        _lib.llama_batch_free(self.native)


# ── context ───────────────────────────────────────────────────────────────────────────────────


#: As an address: making a typed pointer of it, for each token, takes longer than the call.
_logits_address = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)(("llama_get_logits_ith", libllama))


class NoCells(Exception):
    """The KV cache has no room for this batch; nothing was changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextParams:
    n_cells: int
    n_batch: int
    n_seq_max: int
    n_outputs_max: int
    n_threads: int
    cache_type: str = "f16"
    flash_attention: str | bool = "auto"
    rope_freq_base: float = 0.0
    rope_freq_scale: float = 0.0


class Context:
    """A model's memory and compute buffers for ``n_seq_max`` sequences over one unified cache of ``n_cells``.

    Raises InsufficientMemory when llama.cpp cannot allocate it, LoadFailed on other refusals.
    """

    def __init__(self, model: Model, params: ContextParams) -> None:
        native = _lib.llama_context_default_params()
        native.n_ctx = params.n_cells
        native.n_batch = native.n_ubatch = params.n_batch
        native.n_seq_max = params.n_seq_max
        # Bounds the logits buffers: n_batch rows of a 152 k vocabulary would be 300 MB.
        native.n_outputs_max = native.n_outputs_max_per_seq = max(params.n_outputs_max, params.n_seq_max)
        native.n_threads = native.n_threads_batch = params.n_threads
        native.kv_unified = True
        native.swa_full = True  # a sliding-window cache that is cut short forgets what prefix reuse wants
        native.type_k = native.type_v = CACHE_TYPES[params.cache_type]
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
                raise InsufficientMemory(
                    f"No memory for {params.n_cells} KV cells: {reason}.",
                    hint="Load with a smaller context_length or parallel, or with kv_cache_type = 'q8_0'.",
                )
            raise LoadFailed(f"llama.cpp cannot make a context: {reason}.")
        self.params = params
        self._backend = model.backend
        self.memory = _lib.llama_get_memory(self.pointer)
        if not self.memory:
            raise Unsupported("This model does not write token after token, and lmd generates in no other way.")
        self.n_vocab = model.vocab.n_tokens
        self._row = ctypes.c_float * self.n_vocab
        self.n_cells: int = _lib.llama_n_ctx(self.pointer)
        self.n_seq_max = params.n_seq_max
        self._window: int = _lib.llama_model_n_swa(model.pointer)
        self.flash_attention = log.flash_attention if params.flash_attention == "auto" else bool(params.flash_attention)

        self._buffers = log.buffers - before
        self.kv_bytes = bytes_of(self._buffers, "KV", "RS")
        self.compute_bytes = bytes_of(self._buffers, "compute", "output")

    def bytes_on(self, device: str) -> int:
        """Cache and compute buffers on ``device``."""
        return bytes_of(self._buffers, "KV", "RS", "compute", "output", where=self._backend.buffers_of(device))

    def compute_bytes_on(self, device: str) -> int:
        """What of `compute_bytes` is on ``device``."""
        return bytes_of(self._buffers, "compute", "output", where=self._backend.buffers_of(device))

    def decode(self, batch: Batch) -> None:
        """Compute the batch; a GPU may still be at it on return (`wait`).

        Raises NoCells, or RuntimeError when llama.cpp fails for good.
        """
        batch.native.n_tokens = batch.n
        code = _lib.llama_decode(self.pointer, batch.native)
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
        """Let ``target`` hold the first ``n`` positions of ``source`` too; no data is copied."""
        _lib.llama_memory_seq_cp(self.memory, source, target, 0, n)

    def save(self, seq_id: int) -> bytes:
        """All that the memory holds of a sequence, as llama.cpp's own state data; empty where it cannot say."""
        size: int = _lib.llama_state_seq_get_size(self.pointer, seq_id)
        buffer = (ctypes.c_uint8 * size)()
        written: int = _lib.llama_state_seq_get_data(self.pointer, buffer, size, seq_id)
        return bytes(memoryview(buffer)[:written])

    def restore(self, seq_id: int, state: bytes) -> bool:
        """Fill the empty sequence ``seq_id`` with what `save` gave. False: no room, or not from this context."""
        buffer = (ctypes.c_uint8 * len(state)).from_buffer_copy(state)
        return bool(_lib.llama_state_seq_set_data(self.pointer, buffer, len(state), seq_id))

    def close(self) -> None:
        if self.pointer:
            _lib.llama_free(self.pointer)
            self.pointer = None


# ── sampling ──────────────────────────────────────────────────────────────────────────────────


class SamplerChain:
    """llama.cpp's sampler chain; what is added first is applied first."""

    def __init__(self, n_vocab: int) -> None:
        self._chain = _lib.llama_sampler_chain_init(_lib.llama_sampler_chain_default_params())
        self._n_vocab = n_vocab

    def _add(self, sampler: Any) -> None:
        _lib.llama_sampler_chain_add(self._chain, sampler)

    def logit_bias(self, biases: Mapping[int, float]) -> None:
        native = (_lib.llama_logit_bias * len(biases))()
        for entry, (token, bias) in zip(native, biases.items(), strict=True):
            entry.token, entry.bias = token, bias
        self._add(_lib.llama_sampler_init_logit_bias(self._n_vocab, len(biases), native))

    def penalties(self, window: int, *, repeat: float, frequency: float, presence: float) -> None:
        self._add(_lib.llama_sampler_init_penalties(self._n_vocab, window, repeat, frequency, presence))

    def top_k(self, k: int) -> None:
        self._add(_lib.llama_sampler_init_top_k(k))

    def top_p(self, p: float) -> None:
        self._add(_lib.llama_sampler_init_top_p(p, 1))

    def min_p(self, p: float) -> None:
        self._add(_lib.llama_sampler_init_min_p(p, 1))

    def dry(
        self, vocab: Vocab, multiplier: float, *, base: float, allowed: int, window: int, breakers: Sequence[str]
    ) -> None:
        encoded = (ctypes.c_char_p * len(breakers))(*(breaker.encode() for breaker in breakers))
        self._add(_lib.llama_sampler_init_dry(vocab.pointer, multiplier, base, allowed, window, encoded, len(breakers)))

    def top_n_sigma(self, n: float) -> None:
        self._add(_lib.llama_sampler_init_top_n_sigma(n))

    def typical(self, p: float) -> None:
        self._add(_lib.llama_sampler_init_typical(p, 1))

    def xtc(self, probability: float, threshold: float, seed: int) -> None:
        self._add(_lib.llama_sampler_init_xtc(probability, threshold, 1, seed))

    def mirostat(self, version: int, seed: int, tau: float, eta: float) -> None:
        if version == 1:
            self._add(_lib.llama_sampler_init_mirostat(self._n_vocab, seed, tau, eta, 100))
        else:
            self._add(_lib.llama_sampler_init_mirostat_v2(seed, tau, eta))

    def greedy(self) -> None:
        self._add(_lib.llama_sampler_init_greedy())

    def temperature(self, temperature: float, spread: float = 0.0, exponent: float = 1.0) -> None:
        self._add(_lib.llama_sampler_init_temp_ext(temperature, spread, exponent))

    def draw(self, seed: int) -> None:
        self._add(_lib.llama_sampler_init_dist(seed))

    def sample(self, context: Context, index: int) -> int:
        """Draw from batch entry ``index`` and accept the token."""
        return int(_lib.llama_sampler_sample(self._chain, context.pointer, index))

    def accept(self, token: int) -> None:
        _lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if self._chain is not None:
            _lib.llama_sampler_free(self._chain)
            self._chain = None


# ── sizing ────────────────────────────────────────────────────────────────────────────────────


def default_threads() -> int:
    """Physical cores that this process may use, within its cgroup's CPU quota; at least 1.

    Two threads on one core slow each other down in matrix products, so siblings count once.
    """
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        with contextlib.suppress(OSError):
            cores.add(topology.read_text().strip())
    n = len(cores) or len(allowed)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        quota, period = Path(f"/sys/fs/cgroup{group}/cpu.max").read_text().split()
        if quota != "max":
            n = min(n, -(-int(quota) // int(period)))
    return max(1, n)
