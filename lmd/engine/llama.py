"""llama.cpp's backend, its log and its models.

The bindings are imported here, in `vocabulary`, `batch`, `context`, `chain` and `encoder`, and nowhere else. All of it
blocks and belongs to the worker's one compute thread. Pointers stay inside; what leaves are numbers, bytes and numpy
views.
"""

import ctypes
import os
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import llama_cpp as _package
import llama_cpp.llama_cpp as _lib

from lmd.engine import variants
from lmd.engine.vocabulary import Vocab
from lmd.errors import InsufficientMemory, LoadFailed, Unsupported
from lmd.loading import Device, LoadParams, WorkerFacts

# llguidance calls a deprecated name for each of 150,000 tokens.
warnings.filterwarnings("ignore", category=DeprecationWarning, module="llama_cpp")

#: libllama with what it links: ggml's registry of devices, its GGUF reader. Not `llama_cpp._ggml.libggml`: wheels hold
#: copies where the build had links, so that is a second libggml, whose registry llama.cpp never looks at.
libllama: Final[ctypes.CDLL] = _lib._lib

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
        buffers = {name for kind, name in self._buffers if kind == "model"}
        self.is_mapped = buffers <= {"CPU_Mapped"} and not params.mlock
        """All weights are pages of the file: nothing was copied, or is locked in memory."""
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
