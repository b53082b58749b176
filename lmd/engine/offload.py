"""How much of a load goes to the devices: how many layers, and how many KV cells. Values and arithmetic only.

llama.cpp keeps the input embedding in RAM, counts the output matrix as one layer after the blocks, offloads from the
end, and gives each device a run of layers in proportion to its free memory (``llama_model_params.n_gpu_layers``,
split mode "layer"). A layer's part of the KV cache lies where the layer lies. All sizes are bytes.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from lmd.loading import DEFAULT_CONTEXT_LENGTH, Device, LoadParams

LEAST_CONTEXT = 512
"""Tokens: a context that nobody asked for is not made smaller than this to fit."""
AMPLE_CELLS = 4096
"""Cells: a cache that nobody asked for gives way to layers down to this many, then layers give way."""
MARGIN = 2**30
"""Left free on a device: a backend takes memory beside llama.cpp's buffers (CUDA: work space of its libraries)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A model's tensors by what can be offloaded together."""

    input: int
    """Always in RAM."""
    blocks: tuple[int, ...]
    output: int
    """The output matrix and norms."""
    copied: int = 0
    """What offloading the output layer takes besides: the embedding once more, where it serves as output too."""

    @property
    def n_layers(self) -> int:
        """The blocks and the output layer: what ``gpu_layers`` can be at most."""
        return len(self.blocks) + 1

    @property
    def total(self) -> int:
        return self.input + sum(self.blocks) + self.output


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a context takes beside the weights, as llama.cpp reckoned it for one number of layers and cells."""

    cell: float
    """Of KV cache for one token, all layers together."""
    compute: tuple[int, ...]
    """On each device."""
    host_compute: int
    state: int = 0
    """Of recurrent layers, all together; it does not grow with the cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A device as a load finds it."""

    free: int
    """By its own word: what llama.cpp goes by when it deals out layers."""
    usable: int
    """What of it this load may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What a load may take."""

    devices: tuple[Room, ...]
    ram: int
    """0: any amount."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Sizes of a load: the best, and what must not be undercut."""

    context_length: int
    cells: int
    ample: int
    """Prefer offloading fewer layers to a cache smaller than this."""
    least: int
    gpu_layers: int | None
    """None: as many as fit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    gpu_layers: int
    """0 to `Weights.n_layers`."""
    cells: int
    context_length: int


def wanted(params: LoadParams, trained: int, parallel: int) -> Wanted:
    """What a load asks for; where it says nothing, as large as is sensible and as small as still serves."""
    context = params.context_length or min(trained or DEFAULT_CONTEXT_LENGTH, DEFAULT_CONTEXT_LENGTH)
    cells = params.kv_cells or context * parallel
    context = min(context, cells)
    if params.kv_cells:
        ample = least = cells
    elif params.context_length:
        ample = least = context
    else:
        ample, least = min(context, AMPLE_CELLS), min(context, LEAST_CONTEXT)
    return Wanted(
        context_length=context,
        cells=cells,
        ample=ample,
        least=least,
        gpu_layers=params.gpu_layers if isinstance(params.gpu_layers, int) else None,
    )


def usable_devices(devices: Iterable[Device]) -> tuple[Device, ...]:
    """Those that llama.cpp offloads to: the GPUs, or integrated ones where there are no others."""
    known = tuple(devices)
    gpus = tuple(device for device in known if device.kind == "gpu")
    return gpus or tuple(device for device in known if device.kind == "igpu")


def rooms_of(devices: Sequence[Device], limit: int) -> tuple[Room, ...]:
    """``limit``: bytes that this load may take of all devices together; 0: no limit but what is free.

    A device that tells no memory at all is taken to have any amount of it.
    """
    free = [device.memory_free if device.memory_total else 2**50 for device in devices]
    usable = [max(0, n - min(MARGIN, device.memory_total // 8)) for n, device in zip(free, devices, strict=True)]
    scale = min(1.0, limit / sum(usable)) if limit and sum(usable) else 1.0
    return tuple(Room(free=n, usable=int(m * scale)) for n, m in zip(free, usable, strict=True))


def without(rooms: Sequence[Room], taken: int) -> tuple[Room, ...]:
    """The rooms beside another model of ``taken`` bytes, which spreads over the devices as this one does."""
    total = sum(room.free for room in rooms)
    return tuple(
        Room(free=room.free, usable=max(0, room.usable - taken * room.free // total)) if total else room
        for room in rooms
    )


def layout(n_layers: int, gpu_layers: int, free: Sequence[int]) -> list[int | None]:
    """The device of each layer, blocks first and the output layer last; None: in RAM."""
    n = min(gpu_layers, n_layers)
    total = sum(free)
    if not n or not total:
        return [None] * n_layers
    ends = [end / total for end in accumulate(free)]
    return [None] * (n_layers - n) + [min(bisect_right(ends, i / n), len(free) - 1) for i in range(n)]


def cells_that_fit(weights: Weights, cost: Cost, space: Space, gpu_layers: int) -> int:
    """The most cells of KV cache beside ``gpu_layers`` layers on the devices and the others in RAM; 0: none."""
    devices, n_blocks = space.devices, len(weights.blocks)
    places = layout(weights.n_layers, gpu_layers, [device.free for device in devices])
    limit = 2**31 - 1
    bounds: list[tuple[int | None, int]] = [(i, device.usable) for i, device in enumerate(devices)]
    for place, room in [*bounds, *([(None, space.ram)] if space.ram else [])]:
        here = [i for i, where in enumerate(places[:-1]) if where == place]
        fixed = sum(weights.blocks[i] for i in here)
        if places[-1] == place:
            fixed += weights.output + (0 if place is None else weights.copied)
        elif place is not None and not here:
            continue
        fixed += weights.input + cost.host_compute if place is None else cost.compute[place]
        share = len(here) / n_blocks if n_blocks else 0.0
        left = room - fixed - int(cost.state * share)
        if left < 0:
            return 0
        if share and cost.cell:
            limit = min(limit, int(left / (cost.cell * share)))
    return limit


def place(weights: Weights, cost_of: Callable[[int], Cost], want: Wanted, space: Space) -> Placement | None:
    """The most layers on the devices that leave room for the cache (or those asked for); then the most cells.

    ``cost_of``: what `Wanted.cells` cost with so many layers offloaded. It is asked as seldom as can be, as asking
    takes time. None: it does not fit, whatever is offloaded.
    """
    for floor in (want.ample, want.least):
        if want.gpu_layers is None:
            layers = _most_layers(weights, cost_of, space, floor)
        else:
            layers = min(want.gpu_layers, weights.n_layers)
        cells = min(want.cells, cells_that_fit(weights, cost_of(layers), space, layers)) if layers >= 0 else 0
        if cells >= floor:
            return Placement(gpu_layers=layers, cells=cells, context_length=min(want.context_length, cells))
    return None


def _most_layers(weights: Weights, cost_of: Callable[[int], Cost], space: Space, floor: int) -> int:
    """The most layers that leave room for ``floor`` cells; -1: not even none.

    By bisection, but as the cost changes little from one number to the next (only the last layer may change the graph
    a lot), each answer also tells where to ask next.
    """
    fits, too_many = -1, weights.n_layers + 1
    n = weights.n_layers
    while too_many - fits > 1:
        cost = cost_of(n)
        able = [m for m in range(fits + 1, too_many) if cells_that_fit(weights, cost, space, m) >= floor]
        if n in able:
            fits = n
            if able[-1] == n:
                return n
            n = able[-1]
        else:
            too_many = n
            below = [m for m in able if m < n]
            n = below[-1] if below and below[-1] > 0 else (fits + too_many) // 2
    return fits
