"""What one GGUF file says of itself."""

from dataclasses import dataclass, field

Scalar = bool | int | float | str

#: Architectures that only encode: their output is an embedding even where no pooling type is written.
ENCODERS = frozenset(
    {
        "bert",
        "eurobert",
        "gemma-embedding",
        "jina-bert-v2",
        "jina-bert-v3",
        "llama-embed",
        "modern-bert",
        "neo-bert",
        "nomic-bert",
        "nomic-bert-moe",
        "t5encoder",
    }
)

_POOLED = range(1, 5)
"""``<arch>.pooling_type``: 1 mean, 2 CLS, 3 last, 4 rank; 0 and absent mean none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """The metadata of a GGUF file, without its weights and without its vocabulary. Sizes in bytes, lengths in tokens.

    The properties read ``values`` under the names that llama.cpp's converters write; one that returns 0, "" or None
    stands for a key that is absent (or not of the type that it should be: nothing here raises).
    """

    version: int
    size: int
    """Of the file."""
    data_offset: int
    """Where the tensor data begins."""
    n_tensors: int
    n_params: int
    tensor_bytes: int
    block_bytes: tuple[int, ...]
    """Tensor bytes of each block (``blk.N.``): what offloading one more layer costs."""
    quantization: str
    """As llama.cpp names it (Q4_K_M, F16, …); "" where the file holds no tensors."""
    has_output: bool
    """There is an output matrix; else the token embedding serves as output as well (tied)."""
    values: dict[str, Scalar | list[Scalar]] = field(hash=False)
    """Every scalar, every string up to MAX_STRING and every short array, by its full key."""
    lengths: dict[str, int] = field(hash=False)
    """Element counts of all arrays, also of those too long to be kept (the vocabulary); bytes of strings too long."""

    def get(self, key: str) -> Scalar | list[Scalar] | None:
        """The value of ``<architecture>.<key>``."""
        return self.values.get(f"{self.architecture}.{key}")

    def number(self, key: str, default: int = 0) -> int:
        """The integer ``<architecture>.<key>``; of a per-layer array its greatest, which is what memory must hold."""
        value = self.get(key)
        if isinstance(value, list):
            return max((item for item in value if isinstance(item, int)), default=default)
        return int(value) if isinstance(value, int | float) else default

    def text(self, key: str) -> str:
        """The string of the full key."""
        value = self.values.get(key)
        return value if isinstance(value, str) else ""

    def per_layer(self, key: str) -> tuple[int, ...]:
        """``<architecture>.<key>`` for each block: a single number stands for all of them. () where it is absent."""
        value = self.get(key)
        if isinstance(value, list):
            return tuple(item for item in value if isinstance(item, int))
        return (int(value),) * self.block_count if isinstance(value, int | float) else ()

    # ── what it is ────────────────────────────────────────────────────────────────────────────

    @property
    def architecture(self) -> str:
        return self.text("general.architecture")

    @property
    def name(self) -> str:
        return self.text("general.name")

    @property
    def kind(self) -> str:
        """``general.type``: model, adapter, mmproj, imatrix …; files older than that key are models."""
        return self.text("general.type") or "model"

    @property
    def is_mmproj(self) -> bool:
        """The vision (or audio) part of another model."""
        return self.architecture == "clip" or self.kind == "mmproj"

    @property
    def is_embedding(self) -> bool:
        return self.architecture in ENCODERS or self.pooling_type in _POOLED

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / self.n_params if self.n_params else 0.0

    # ── shape ─────────────────────────────────────────────────────────────────────────────────

    @property
    def context_length(self) -> int:
        """The trained context."""
        return self.number("context_length")

    @property
    def embedding_length(self) -> int:
        return self.number("embedding_length")

    @property
    def feed_forward_length(self) -> int:
        return self.number("feed_forward_length")

    @property
    def block_count(self) -> int:
        value = self.get("block_count")
        return value if isinstance(value, int) and 0 < value <= 65536 else 0

    @property
    def head_count(self) -> int:
        return self.number("attention.head_count")

    @property
    def head_count_kv(self) -> tuple[int, ...]:
        """KV heads of each block; 0 for a block without attention. One entry a block, where the header says."""
        return self.per_layer("attention.head_count_kv") or self.per_layer("attention.head_count")

    @property
    def key_length(self) -> int:
        """Width of one key head."""
        return self.number("attention.key_length") or self._head_width

    @property
    def value_length(self) -> int:
        return self.number("attention.value_length") or self._head_width

    @property
    def _head_width(self) -> int:
        return self.embedding_length // self.head_count if self.head_count > 0 else 0

    @property
    def sliding_window(self) -> int:
        return self.number("attention.sliding_window")

    @property
    def expert_count(self) -> int:
        return self.number("expert_count")

    @property
    def expert_used_count(self) -> int:
        return self.number("expert_used_count")

    @property
    def pooling_type(self) -> int | None:
        value = self.get("pooling_type")
        return value if isinstance(value, int) else None

    @property
    def rope_freq_base(self) -> float:
        value = self.get("rope.freq_base")
        return float(value) if isinstance(value, int | float) else 0.0

    @property
    def vocab_size(self) -> int:
        return self.lengths.get("tokenizer.ggml.tokens", 0) or self.number("vocab_size")

    # ── tokenizer and template ────────────────────────────────────────────────────────────────

    @property
    def chat_template(self) -> str:
        return self.text("tokenizer.chat_template")

    @property
    def chat_templates(self) -> dict[str, str]:
        """All templates by name; the unnamed one is "default"."""
        prefix = "tokenizer.chat_template."
        named = {key.removeprefix(prefix): self.text(key) for key in self.values if key.startswith(prefix)}
        return {"default": self.chat_template, **named} if self.chat_template else named

    def token_id(self, role: str) -> int | None:
        """The id of the token that plays ``role``: bos, eos, eot, eom, unknown, padding, …"""
        value = self.values.get(f"tokenizer.ggml.{role}_token_id")
        return value if isinstance(value, int) else None

    @property
    def add_bos(self) -> bool | None:
        value = self.values.get("tokenizer.ggml.add_bos_token")
        return value if isinstance(value, bool) else None

    # ── split files ───────────────────────────────────────────────────────────────────────────

    @property
    def split_count(self) -> int:
        """How many files the model is split into; 0 and 1: it is whole."""
        value = self.values.get("split.count")
        return value if isinstance(value, int) else 0

    @property
    def split_no(self) -> int:
        """Which of the files this is, from 0."""
        value = self.values.get("split.no")
        return value if isinstance(value, int) else 0
