"""What a load will take, told from the model's header, and what there is to take it from."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from lmd.library.header import ENCODERS, Header
from lmd.loading import DEFAULT_CONTEXT_LENGTH, DEFAULT_TEXT_LENGTH, Device, LoadedModel, LoadParams, WorkerFacts
from lmd.worker.cgroup import anonymous_bytes, system_memory

MIB = 2**20
DEFAULT_PARALLEL = 4
DEFAULT_BATCH = 512
LEAST_CONTEXT = 512
"""Tokens: a context that nobody asked for is not made smaller than this to fit (`lmd.engine.sketch.fit_to_devices`)."""
PROCESS_BYTES = 64 * MIB
"""A worker before it has a model: the interpreter, numpy and llama.cpp."""
_TOKEN_BYTES = 360
"""What llama.cpp keeps of each token of a vocabulary: its text, its merges and the maps to find them."""
_CELL_PADDING = 256
"""llama.cpp rounds the KV cache up to this many cells."""

#: Bytes per element of a KV cache: bytes of a block over its elements, as ggml lays them out.
_CACHE_BYTES = {
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


@dataclass(frozen=True, slots=True)
class Memory:
    """An amount of both kinds. Bytes; the difference of two may be negative."""

    ram: int = 0
    vram: int = 0

    def __add__(self, other: Self) -> "Memory":
        return Memory(self.ram + other.ram, self.vram + other.vram)

    def __sub__(self, other: Self) -> "Memory":
        return Memory(self.ram - other.ram, self.vram - other.vram)

    def fits(self, room: Self) -> bool:
        """Nothing of it is more than the room; a kind that it does not need may be overdrawn."""
        return (self.ram <= 0 or self.ram <= room.ram) and (self.vram <= 0 or self.vram <= room.vram)

    def at_most(self, bound: Self) -> "Memory":
        return Memory(max(0, min(self.ram, bound.ram)), max(0, min(self.vram, bound.vram)))

    @property
    def total(self) -> int:
        return self.ram + self.vram


def total(amounts: Iterable[Memory]) -> Memory:
    ram = vram = 0
    for amount in amounts:
        ram += amount.ram
        vram += amount.vram
    return Memory(ram, vram)


@dataclass(frozen=True, slots=True)
class Need:
    """What a load takes when it gets all that it would like, and the least with which it can serve."""

    full: Memory
    floor: Memory
    weights: int
    kv: int
    compute: int
    draft: int = 0
    vocabulary: int = 0

    @property
    def total(self) -> int:
        return self.full.total


def estimate(header: Header, load: LoadParams, draft: Header | None = None, vram: int = 0) -> Need:
    """``vram``: bytes that llama.cpp's devices have for us in all; layers go there first, as ``gpu_layers`` allows."""
    if header.is_embedding:
        return _estimate_encoder(header, load, vram)
    context = load.context_length or min(header.context_length or DEFAULT_CONTEXT_LENGTH, DEFAULT_CONTEXT_LENGTH)
    parallel = load.parallel or DEFAULT_PARALLEL
    cells = load.kv_cells or context * parallel
    least = load.kv_cells or load.context_length or min(context, LEAST_CONTEXT)
    cache_type = load.kv_cache_type or "f16"

    state = _recurrent_bytes(header) * parallel
    kv = _kv_bytes(header, cells, cache_type) + state
    compute = _compute_bytes(header, load, cells)
    least = min(cells, least)
    saved = kv - state - _kv_bytes(header, least, cache_type) + compute - _compute_bytes(header, load, least)
    drafted = 0
    if draft is not None:
        drafted = draft.tensor_bytes + _kv_bytes(draft, cells, cache_type) + _compute_bytes(draft, load, cells)
        saved += drafted - draft.tensor_bytes
        saved -= _kv_bytes(draft, least, cache_type) + _compute_bytes(draft, load, least)
    weights = header.tensor_bytes
    amount = weights + kv + compute + drafted

    share = _offloaded_share(header, load, amount, vram)
    vocabulary = _TOKEN_BYTES * (header.vocab_size + (draft.vocab_size if draft else 0))
    stays = _stays_in_ram(header, share) + vocabulary
    full, floor = _split(amount, share, stays, vram), _split(amount - saved, share, stays, vram)
    return Need(full, floor, weights=weights, kv=kv, compute=compute, draft=drafted, vocabulary=vocabulary)


def _estimate_encoder(header: Header, load: LoadParams, vram: int) -> Need:
    """A model that makes vectors keeps nothing, but computes a whole text in one piece (`lmd.engine.embedding`)."""
    trained = header.context_length or DEFAULT_TEXT_LENGTH
    text = min(load.context_length or DEFAULT_TEXT_LENGTH, trained)
    least = text if load.context_length else min(text, LEAST_CONTEXT)
    weights = header.tensor_bytes

    def beside(longest: int) -> tuple[int, int]:
        batch = max(load.batch or DEFAULT_BATCH, longest)
        kv = 0 if header.architecture in ENCODERS else _kv_bytes(header, batch, "f16")
        # llama.cpp keeps room for the logits of every token, also where the model has none.
        outputs = 4 * batch * header.vocab_size
        return kv, _compute_bytes(header, replace(load, batch=batch, parallel=1), batch) + outputs

    kv, compute = beside(text)
    amount, floor = weights + kv + compute, weights + sum(beside(least))
    share = _offloaded_share(header, load, amount, vram)
    stays = _stays_in_ram(header, share)
    split = _split(amount, share, stays, vram), _split(floor, share, stays, vram)
    return Need(*split, weights=weights, kv=kv, compute=compute)


def measured(need: Need, loaded: LoadedModel) -> Memory:
    """What the loaded instance takes, by the worker's word."""
    amount = loaded.model_bytes + loaded.kv_bytes + loaded.compute_bytes + need.draft
    return Memory(PROCESS_BYTES + need.vocabulary + max(0, amount - loaded.vram_bytes), loaded.vram_bytes)


def _split(amount: int, share: float, stays: int, vram: int) -> Memory:
    """``amount`` divided between RAM and VRAM, with what the worker's own, exact plan may differ by.

    ``stays``: bytes that are in RAM although their layers are offloaded, or beside the amount.
    """
    offloaded = int(amount * share)
    promised = max(offloaded, min(vram, offloaded * 9 // 8 + 128 * MIB)) if offloaded else 0
    return Memory(PROCESS_BYTES + amount - offloaded + stays, promised)


def _stays_in_ram(header: Header, share: float) -> int:
    """The input embedding and the buffers between host and device; where only a part is offloaded, layers are whole
    and devices keep a margin: two layers may stay more than the share says."""
    if not share:
        return 0
    blocks = header.block_bytes
    outside = header.tensor_bytes - sum(blocks) if blocks else 0
    return outside + 64 * MIB + (2 * max(blocks, default=0) if share < 1 else 0)


def _offloaded_share(header: Header, load: LoadParams, amount: int, vram: int) -> float:
    """The part (0..1) of a load that goes to VRAM."""
    if vram <= 0 or load.gpu_layers == 0:
        return 0.0
    layers = max(1, header.block_count)
    if isinstance(load.gpu_layers, int):
        return min(load.gpu_layers, layers) / layers
    return min(1.0, vram / amount) if amount else 0.0


def _kv_bytes(header: Header, cells: int, cache_type: str) -> int:
    """Keys and values of ``cells`` tokens in every layer that has attention."""
    heads = sum(header.head_count_kv)
    key, value = header.key_length, header.value_length
    if lora := header.number("attention.kv_lora_rank"):  # multi-head latent attention keeps one compressed vector
        heads, key, value = header.block_count, lora + header.number("rope.dimension_count"), 0
    padded = -(-cells // _CELL_PADDING) * _CELL_PADDING
    return int(heads * (key + value) * padded * _CACHE_BYTES[cache_type])


def _recurrent_bytes(header: Header) -> int:
    """State of one sequence in the layers of a recurrent model (Mamba and its like), which is kept in f32."""
    state, inner = header.number("ssm.state_size"), header.number("ssm.inner_size")
    if not state or not inner:
        return 0
    convolution = max(0, header.number("ssm.conv_kernel") - 1)
    columns = inner + 2 * header.number("ssm.group_count") * state
    return 4 * header.block_count * (inner * state + convolution * columns)


def _compute_bytes(header: Header, load: LoadParams, cells: int) -> int:
    """Working memory of the largest step, as llama.cpp reserves it.

    Fitted to what it reports: the widest layer's activations of a whole batch in f32, the attention
    mask over all cells (f16 with flash attention, else f32 and the scores of every head), and some rows of logits.
    """
    batch = load.batch or DEFAULT_BATCH
    inner = max(header.feed_forward_length, header.number("expert_feed_forward_length"))
    activations = 4 * batch * (4 * header.embedding_length + 3 * inner)
    attention = batch * cells * (4 + 4 * header.head_count if load.flash_attention is False else 2)
    logits = 4 * header.vocab_size * 2 * max(load.parallel or DEFAULT_PARALLEL, DEFAULT_PARALLEL)
    # A header without a shape has no attention that could be counted.
    return activations + logits + (attention if header.block_count else 0)


# ── what there is ─────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Reading:
    """Bytes of RAM. ``available`` counts page cache as free, mapped weights too; ``anonymous`` does not."""

    total: int
    available: int
    anonymous: Mapping[int, int]
    """By process id, of those asked for: what each already takes away from ``available``."""


Probe = Callable[[Iterable[int]], Reading]


def probe(pids: Iterable[int]) -> Reading:
    """The live figures of this machine and cgroup. Reads a few files of the kernel: some 100 µs."""
    memory = system_memory()
    return Reading(memory.total, memory.available, {pid: anonymous_bytes(pid) for pid in pids})


@dataclass(frozen=True, slots=True)
class Budget:
    """``free``: what may be given to new loads. ``capacity``: what there would be if every instance left."""

    free: Memory
    capacity: Memory


@dataclass(frozen=True, slots=True)
class Holding:
    """What one instance has been promised, and its process (0: none yet)."""

    memory: Memory
    pid: int = 0


def budget(reading: Reading, holdings: Iterable[Holding], limit: Any = "auto", vram: int = 0) -> Budget:
    """``limit``: bytes for all instances together, or "auto". ``vram``: bytes that the devices have for us in all.

    What an instance was promised and has not taken yet (or has as mapped file pages, which the kernel
    counts as available) is not free for another.
    """
    held = list(holdings)
    margin = max(256 * MIB, reading.total // 32)
    promised = total(holding.memory for holding in held)
    taken = [min(reading.anonymous.get(holding.pid, 0), holding.memory.ram) for holding in held]
    free = reading.available - margin - (promised.ram - sum(taken))
    capacity = reading.available - margin + sum(taken)
    if isinstance(limit, int):
        free = min(free, limit - promised.ram)
        capacity = min(capacity, limit)
    return Budget(Memory(free, vram - promised.vram), Memory(capacity, vram))


def device_memory(facts: WorkerFacts | None, promised: Memory = Memory()) -> int:
    """Bytes of VRAM for us in all: what was free when the worker said hello, and what our instances had then.

    A margin stays free on each device, as in `lmd.engine.offload`: backends take memory beside llama.cpp's buffers.
    """
    if facts is None:
        return 0
    cards = [device for device in facts.devices if device.kind == "gpu"]
    usable = sum(max(0, card.memory_total - _device_margin(card)) for card in cards)
    free = sum(max(0, card.memory_free - _device_margin(card)) for card in cards)
    # An instance that is being loaded was promised what it has not taken yet: that is free still, and not there twice.
    return min(usable, free + promised.vram)


def _device_margin(device: Device) -> int:
    return min(2**30, device.memory_total // 8)
