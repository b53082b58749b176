"""What a load will take, asked of llama.cpp itself: it plans the load of the real file without allocating anything.

An estimate would have to know every architecture's graph and every backend's kernels; the plan is made by the code
that will run. It costs some tens of milliseconds, as the vocabulary is left out of it.
"""

import contextlib
import ctypes
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lmd.engine.context import Context, ContextParams
from lmd.engine.llama import Backend, Model, SketchVocabulary, libllama
from lmd.engine.offload import Cost, Placement, Space, Wanted, Weights, place
from lmd.errors import InsufficientMemory, LoadFailed
from lmd.loading import Device, LoadParams

_BLOCK: Final = re.compile(r"blk\.(\d+)\.")
_PART: Final = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_EMBEDDING: Final = "token_embd.weight"
_OUTPUT: Final = "output.weight"


class _InitParams(ctypes.Structure):
    """``gguf_init_params`` (gguf.h)."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


def _declare() -> Any:
    """gguf.h's readers; the bindings do not wrap them."""
    context, index = ctypes.c_void_p, ctypes.c_int64
    for name, result, arguments in (
        ("gguf_init_from_file", ctypes.c_void_p, [ctypes.c_char_p, _InitParams]),
        ("gguf_free", None, [context]),
        ("gguf_get_n_tensors", ctypes.c_int64, [context]),
        ("gguf_get_tensor_name", ctypes.c_char_p, [context, index]),
        ("gguf_get_tensor_size", ctypes.c_size_t, [context, index]),
        ("gguf_find_key", ctypes.c_int64, [context, ctypes.c_char_p]),
        ("gguf_get_arr_n", ctypes.c_size_t, [context, index]),
        ("gguf_get_val_str", ctypes.c_char_p, [context, index]),
    ):
        function = getattr(libllama, name)
        function.restype, function.argtypes = result, arguments
    return libllama


_gguf = _declare()


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensors:
    """What a GGUF file (with all its parts) holds."""

    weights: Weights
    vocabulary: SketchVocabulary


def read_tensors(path: str) -> Tensors:
    """Sizes from the headers of ``path`` and its further parts. Raises LoadFailed where one cannot be read."""
    sizes: Counter[str] = Counter()
    architecture, n_tokens = "", 0
    for part in _parts(path):
        gguf = _gguf.gguf_init_from_file(str(part).encode(), _InitParams(True, None))
        if not gguf:
            raise LoadFailed(f"{part.name} is missing or no GGUF file.", hint="Download it again: 'lmctl get'.")
        try:
            for i in range(_gguf.gguf_get_n_tensors(gguf)):
                name = _gguf.gguf_get_tensor_name(gguf, i).decode()
                sizes[_group(name)] += _gguf.gguf_get_tensor_size(gguf, i)
            # Further parts hold tensors alone.
            if (key := _gguf.gguf_find_key(gguf, b"general.architecture")) >= 0:
                architecture = _gguf.gguf_get_val_str(gguf, key).decode()
            if (key := _gguf.gguf_find_key(gguf, b"tokenizer.ggml.tokens")) >= 0:
                n_tokens = _gguf.gguf_get_arr_n(gguf, key)
        finally:
            _gguf.gguf_free(gguf)
    n_blocks = 1 + max((int(key) for key in sizes if key.isdigit()), default=-1)
    embedding, tied = sizes[_EMBEDDING], _OUTPUT not in sizes
    weights = Weights(
        input=sizes["input"] + embedding,
        blocks=tuple(sizes[str(i)] for i in range(n_blocks)),
        output=sizes["output"] + sizes[_OUTPUT],
        copied=embedding if tied else 0,
    )
    return Tensors(weights=weights, vocabulary=SketchVocabulary(architecture, n_tokens))


def _parts(path: str) -> list[Path]:
    found = _PART.search(path)
    if not found:
        return [Path(path)]
    head, n = path[: found.start()], int(found[2])
    return [Path(f"{head}-{i:05}-of-{n:05}.gguf") for i in range(1, n + 1)]


def _group(name: str) -> str:
    """The block's number, "output" (norms after the blocks), "input", or the name of one of the two great matrices."""
    if block := _BLOCK.match(name):
        return block[1]
    if name in (_EMBEDDING, _OUTPUT):
        return name
    return "output" if name.startswith("output") else "input"


ShapeOf = Callable[[Model], ContextParams]
"""The context that a load makes for a model; the number of cells is the plan's."""


class Sketch:
    """Plans for one file. Raises as `Model` and `Context` do: what llama.cpp cannot load it cannot plan either."""

    def __init__(
        self, backend: Backend, path: str, params: LoadParams, devices: tuple[Device, ...], shape: ShapeOf
    ) -> None:
        self._backend, self._path, self._params, self._devices = backend, path, params, devices
        self._shape = shape
        tensors = read_tensors(path)
        self.weights, self._vocabulary = tensors.weights, tensors.vocabulary
        with self._model(0) as model:
            self.trained_context_length = model.trained_context_length

    @contextlib.contextmanager
    def _model(self, gpu_layers: int) -> Iterator[Model]:
        log = self._backend.log
        log.sketching = True
        try:
            model = Model(self._backend, self._path, self._params, gpu_layers=gpu_layers, sketch=self._vocabulary)
            try:
                yield model
            finally:
                model.close()
        finally:
            log.sketching = False

    def cost(self, gpu_layers: int, cells: int) -> Cost:
        """What a context of ``cells`` takes with ``gpu_layers`` layers offloaded."""
        log = self._backend.log
        with self._model(gpu_layers) as model:
            before = log.cache_bytes
            context = Context(model, replace(self._shape(model), n_cells=cells, n_threads=1))
            try:
                compute = [context.compute_bytes_on(device.name) for device in self._devices]
                return Cost(
                    cell=(log.cache_bytes - before) / context.n_cells,
                    compute=tuple(compute),
                    host_compute=context.compute_bytes - sum(compute),
                    state=context.kv_bytes,  # a cache is planned only, the state of recurrent layers is allocated
                )
            finally:
                context.close()


def fit_to_devices(sketch: Sketch, want: Wanted, space: Space) -> Placement:
    """How to load, as llama.cpp plans it. Raises InsufficientMemory when it fits in no way.

    What a context computes with grows with its cells too, so a cache that has to give way is planned anew at half.
    """
    while True:
        costs: dict[int, Cost] = {}

        def cost_of(gpu_layers: int, costs: dict[int, Cost] = costs, cells: int = want.cells) -> Cost:
            if gpu_layers not in costs:
                costs[gpu_layers] = sketch.cost(gpu_layers, cells)
            return costs[gpu_layers]

        placement = place(sketch.weights, cost_of, want, space)
        if placement is not None:
            return placement
        if want.cells <= want.least:
            raise _too_large(sketch.weights, next(iter(costs.values())), want, space)
        cells = max(want.least, want.cells // 2)
        want = replace(want, cells=cells, context_length=min(want.context_length, cells), ample=min(want.ample, cells))


def _too_large(weights: Weights, cost: Cost, want: Wanted, space: Space) -> InsufficientMemory:
    mib = 2**20
    free = sum(room.usable for room in space.devices)
    have = f"{free // mib} MiB of VRAM" + (f" and {space.ram // mib} MiB of RAM" if space.ram else "")
    cache = int(want.least * cost.cell)
    need = f"{weights.total // mib} MiB of weights and {cache // mib} MiB of KV cache for {want.least} tokens"
    if not space.devices:
        return InsufficientMemory(
            f"The model does not fit in RAM: it has {need}; {space.ram // mib} MiB are free for it.",
            hint="Load with a smaller --context-length, or unload another model.",
        )
    if want.gpu_layers is None:
        return InsufficientMemory(
            f"The model fits neither in VRAM nor in RAM nor in both: it has {need}; {have} are free for it.",
            hint="Load with a smaller --context-length, or unload another model.",
        )
    return InsufficientMemory(
        f"{min(want.gpu_layers, weights.n_layers)} of {weights.n_layers} layers do not fit in VRAM: "
        f"the model has {need}; {have} are free for it.",
        hint="Load with --gpu auto or fewer layers, a smaller --context-length, or unload another model.",
    )
