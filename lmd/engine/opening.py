"""Opening a model: what to offload, how large the context, and the trying again where memory was gone in between."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from lmd.engine.context import Context, ContextParams
from lmd.engine.llama import Backend, Model
from lmd.engine.offload import Placement, Space, rooms_of, usable_devices, wanted, without
from lmd.engine.sketch import Sketch, fit_to_devices
from lmd.engine.speculative import check_vocabularies
from lmd.engine.threads import default_threads
from lmd.errors import InsufficientMemory
from lmd.loading import LoadParams

DEFAULT_PARALLEL = 4
DEFAULT_BATCH = 512
RETAINED_SLOTS = 1
"""Slots beyond ``parallel`` in a pool, which only keep prefixes. Few: each costs a row of logits, and its cells are
passed over in every attention (four cost a tenth of the throughput of 8 clients). The rest is kept in RAM
(`PrefixStore`)."""
STREAM_CELLS = 256
"""llama.cpp makes streams of a multiple of so many cells: others would take more memory than was planned."""
DRAFT_OUTPUTS = 24
"""Drafted tokens that one step verifies at most, all sequences together: each is a row of logits."""

OnProgress = Callable[[float], None]


def context_params(model: Model, params: LoadParams) -> ContextParams:
    """The context that a load makes for ``model``, but for its number of cells."""
    parallel = params.parallel or DEFAULT_PARALLEL
    n_slots = min(256, parallel + RETAINED_SLOTS)
    if model.is_recurrent or model.is_hybrid:
        n_slots = parallel + 1  # each slot there is a whole state, not a list of cells
    return ContextParams(
        n_cells=0,
        n_batch=params.batch or DEFAULT_BATCH,
        n_seq_max=n_slots,
        n_outputs_max=n_slots + DRAFT_OUTPUTS,
        n_threads=params.threads or default_threads(),
        cache_type=params.kv_cache_type or "f16",
        flash_attention="auto" if params.flash_attention is None else params.flash_attention,
        rope_freq_base=params.rope_freq_base or 0.0,
        rope_freq_scale=params.rope_freq_scale or 0.0,
    )


def _draft_context(main: ContextParams) -> ContextParams:
    """A draft model holds what the main model holds, and predicts only after the last token."""
    return ContextParams(
        n_cells=main.n_cells,
        n_batch=main.n_batch,
        n_seq_max=main.n_seq_max,
        n_outputs_max=main.n_seq_max,
        n_threads=main.n_threads,
    )


@dataclass
class Opening:
    """One load. ``free_memory``, ``free_vram``: bytes that it may take; 0: no limit known (of VRAM: what is free)."""

    backend: Backend
    path: str
    params: LoadParams
    draft_path: str | None = None
    free_memory: int = 0
    free_vram: int = 0
    kept: Model | None = None
    """The model, where it is open already: only the context is made."""
    placement: Placement | None = field(default=None, init=False)
    """None: nothing to plan. All goes to RAM, as large as it is asked for."""

    def open(self, on_progress: OnProgress | None = None) -> tuple[Model, Context, int]:
        """The model, its context, and the most tokens of one sequence. Raises as `Model` and `Context` do.

        Where llama.cpp gets less VRAM than was free a moment ago (other programs take of it too), it is opened again
        with fewer layers offloaded, unless their number was asked for.
        """
        self.placement = self._place()
        told = 0.0

        def progress(fraction: float) -> None:
            nonlocal told
            if on_progress is not None and fraction >= told:  # a second try does not go back
                told = fraction
                on_progress(fraction)

        while True:
            try:
                return self._try(progress)
            except InsufficientMemory as exc:
                layers = self.placement.gpu_layers if self.placement is not None else 0
                if self.placement is None or not layers or isinstance(self.params.gpu_layers, int):
                    raise
                self.placement = replace(self.placement, gpu_layers=layers - max(1, layers // 8))
                sys.stderr.write(f"<4>{exc.message} Trying again with {self.placement.gpu_layers} layers in VRAM.\n")

    def open_draft(self, model: Model, context: Context) -> tuple[Model, Context] | None:
        """The draft model, if there is one, and its context beside ``context``: it goes where the model went."""
        if self.draft_path is None:
            return None
        layers = None if self.placement is not None and self.placement.gpu_layers else 0
        if isinstance(self.params.gpu_layers, int):
            layers = self.params.gpu_layers
        draft = Model(self.backend, self.draft_path, self.params, gpu_layers=layers)
        check_vocabularies(model, draft)
        return draft, Context(draft, _draft_context(context.params))

    def _place(self) -> Placement | None:
        backend, params = self.backend, self.params
        devices = usable_devices(backend.devices()) if params.gpu_layers != 0 else ()
        if not devices and not self.free_memory:
            return None
        sketch = Sketch(backend, self.path, params, devices, lambda model: context_params(model, params))
        want = wanted(params, sketch.trained_context_length, params.parallel or DEFAULT_PARALLEL)
        space = Space(devices=rooms_of(devices, self.free_vram), ram=self.free_memory)
        if not devices:
            want = replace(want, gpu_layers=0)
        if self.draft_path is not None:
            draft = Sketch(
                backend, self.draft_path, params, devices, lambda model: _draft_context(context_params(model, params))
            )
            cost = draft.cost(draft.weights.n_layers, want.cells)
            taken = draft.weights.total + int(cost.cell * want.cells) + sum(cost.compute) + cost.host_compute
            if devices:
                space = replace(space, devices=without(space.devices, taken))
            else:
                space = replace(space, ram=max(1, space.ram - taken))
        return fit_to_devices(sketch, want, space)

    def _in_streams(self, model: Model, context_length: int, n_cells: int) -> bool:
        """Whether each sequence is to have cells of its own, rather than all of them a pool.

        Attention over a pool passes over the cells of the others too: of 8 streams, it cost a twentieth of the
        throughput, and more with each token. But streams need room for a whole context each, and no model's memory
        but plain KV cells is copied from one to the other. On a GPU nobody has measured it yet.
        """
        parallel = self.params.parallel or DEFAULT_PARALLEL
        return (
            1 < parallel < 256
            and not self.params.kv_cells
            and n_cells >= context_length * parallel
            and context_length % STREAM_CELLS == 0
            and not (self.placement is not None and self.placement.gpu_layers)
            and not (model.is_recurrent or model.is_hybrid)
        )

    def _try(self, on_progress: OnProgress) -> tuple[Model, Context, int]:
        placement = self.placement
        layers = placement.gpu_layers if placement is not None else 0
        model = self.kept or Model(self.backend, self.path, self.params, on_progress, gpu_layers=layers)
        try:
            shape = context_params(model, self.params)
            if placement is not None:
                context_length, n_cells = placement.context_length, placement.cells
            else:
                want = wanted(self.params, model.trained_context_length, self.params.parallel or DEFAULT_PARALLEL)
                context_length, n_cells = want.context_length, want.cells
            if self._in_streams(model, context_length, n_cells):
                shape = replace(shape, n_seq_max=shape.n_seq_max - RETAINED_SLOTS, streams=True)
            return model, Context(model, replace(shape, n_cells=n_cells)), context_length
        except BaseException:
            model.close()
            raise
