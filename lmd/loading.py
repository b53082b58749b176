"""How a model is loaded, and what loading it really gave.

`LoadParams` is also the schema of a preset's ``[load]`` and of ``[defaults.load]``. ``None`` means
"not said"; what stays unsaid is decided by the worker, which tells its decisions in `LoadedModel`.
"""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from annotated_types import Ge, Gt, Le, Len, MinLen

DEFAULT_CONTEXT_LENGTH = 16384
"""The most tokens a sequence gets where nobody says: a trained length of 128 k would take the machine."""

DEFAULT_TEXT_LENGTH = 2048
"""The same for a text of an embedding model: it is computed in one piece, whose buffers grow with its length."""

PROMPT_LOOKUP = "prompt-lookup"
"""The ``draft_model`` that needs no file: what followed the same tokens earlier is guessed to follow again."""

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


Pooling = Literal["", "mean", "cls", "last", "rank"]
"""How a model makes one vector of a text's: their mean, the first token's, the last token's; "rank": its head makes a
score of it. "": it does not, it generates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A LoRA adapter over a model. ``path``: of its GGUF file. ``scale``: how much of it; 0: nothing, 1: as trained."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    path: Annotated[str, MinLen(1)]
    scale: Annotated[float, Ge(-100), Le(100)] = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadParams:
    """How to load a model. Two loads with equal files and equal params share one instance."""

    __pydantic_config__: ClassVar[Any] = {"extra": "forbid", "allow_inf_nan": False}

    context_length: Annotated[int, Ge(16), Le(16_777_216)] | None = None
    """The most tokens that one sequence may hold. Unset: the trained length, at most 16384 (DEFAULT_CONTEXT_LENGTH)."""
    parallel: Annotated[int, Ge(1), Le(256)] | None = None
    """Sequences computed at once; more wait in the engine's queue. Unset: 4."""
    kv_cells: Annotated[int, Ge(16)] | None = None
    """Tokens in one KV cache that all sequences share. Unset: a whole context for each, less where memory is short."""
    gpu_layers: Annotated[int, Ge(0)] | Literal["auto"] | None = None
    """Layers kept in VRAM. Unset and "auto": as many as fit (all, where there is no telling)."""
    threads: Annotated[int, Ge(1), Le(1024)] | None = None
    """CPU threads that compute. Unset: as many as there are cores for it."""
    batch: Annotated[int, Ge(1), Le(16384)] | None = None
    """The token budget of one step. Unset: 512."""
    flash_attention: Literal["auto"] | bool | None = None
    kv_cache_type: CacheType | None = None
    """Element type of the KV cache. Unset: f16."""
    mmap: bool | None = None
    """Read the file through the page cache, shared with others who read it, in place of a copy. Unset: true."""
    mlock: bool | None = None
    """Keep the weights from being swapped out. Unset: false."""
    draft_model: str | None = None
    """A small model that guesses ahead (a key or a path), or "prompt-lookup", which needs no file."""
    adapters: Annotated[tuple[Adapter, ...], Len(0, 16)] | None = None
    """LoRA adapters: tables with ``path`` (of a GGUF file) and ``scale`` (1: as trained)."""
    rope_freq_base: Annotated[float, Gt(0)] | None = None
    rope_freq_scale: Annotated[float, Gt(0)] | None = None

    def over(self, base: Self) -> Self:
        """These parameters, with what they leave unsaid taken from ``base``."""
        said = {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}
        return replace(base, **said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A device that llama.cpp sees. Memory in bytes."""

    name: str
    description: str
    kind: Literal["cpu", "gpu", "igpu", "accel"]
    memory_total: int = 0
    memory_free: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFacts:
    """What a worker knows before it has a model."""

    pid: int
    llama_cpp_python: str
    llama_cpp: str
    """Build information of the llama.cpp library, as it reports itself."""
    system_info: str
    """CPU features and backends in use, as llama.cpp prints them."""
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """What was really allocated and what the model is. Sizes in bytes, lengths in tokens."""

    context_length: int
    parallel: int
    kv_cells: int
    gpu_layers: int
    """Layers offloaded. The output layer counts, first of all: n_layers + 1 is the whole model."""
    n_layers: int
    threads: int
    batch: int
    flash_attention: bool
    kv_cache_type: str
    trained_context_length: int
    n_vocab: int
    n_embd: int
    n_params: int
    model_bytes: int
    """Size of all tensors."""
    kv_bytes: int
    compute_bytes: int
    bos_text: str
    eos_text: str
    add_bos: bool
    """The vocabulary wants a BOS before every prompt (left out when the prompt's text already starts with it)."""
    load_seconds: float
    fim: tuple[int, int, int] | None = None
    """The tokens before prefix, suffix and middle of a text to fill in; None: the model was not trained to."""
    pooling: Pooling = ""
    """Not "": the model turns texts into vectors (or scores) and generates nothing; ``context_length`` is the longest
    text and ``parallel`` how many are computed together."""
    n_vector: int = 0
    """Components of its vectors; 1 with "rank"."""
    vram_bytes: int = 0
    """What of the weights, the cache and the compute buffers (the draft model's too) is in VRAM."""
    parks: bool = False
    """Its worker can free all but the vocabulary, and load the same again without reading that (`messages.Park`)."""
    control_texts: tuple[str, ...] = ()
    """Texts that become control tokens where a prompt says so; what a client writes must not (`lmd.chat.control`)."""
