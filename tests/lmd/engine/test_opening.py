import pytest

from lmd.engine import opening as module
from lmd.engine.context import Context, ContextParams
from lmd.engine.llama import Backend, Model
from lmd.engine.offload import Placement
from lmd.engine.opening import Opening
from lmd.errors import InsufficientMemory
from lmd.loading import LoadParams
from tests.lmd.engine.driver import TINY


class Full:
    """Memory that has room from the third try on: for the first two contexts there is none."""

    def __init__(self) -> None:
        self.tried: list[int] = []

    def __call__(self, model: Model, params: ContextParams) -> Context:
        self.tried.append(model.gpu_layers)
        if len(self.tried) < 3:
            raise InsufficientMemory("No memory for 512 KV cells: out of memory.")
        return Context(model, params)


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> Full:
    found = Full()
    monkeypatch.setattr(module, "Context", found)
    return found


class Offloading(Opening):
    """As if there were a device, on which all five layers fit."""

    def _place(self) -> Placement | None:
        return Placement(gpu_layers=5, cells=512, context_length=256)


def test_where_memory_went_meanwhile_fewer_layers_are_offloaded(
    backend: Backend, full: Full, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(backend, "offloads", True)
    progress: list[float] = []
    model, context, context_length = Offloading(backend, str(TINY), LoadParams(threads=1)).open(progress.append)
    context.close()
    model.close()
    assert full.tried == [5, 4, 3]
    assert (context.n_cells, context_length) == (512, 256)
    assert progress == sorted(progress)
    told = capfd.readouterr().err
    assert "<4>No memory for 512 KV cells: out of memory. Trying again with 4 layers in VRAM." in told


def test_a_number_of_layers_that_was_asked_for_is_not_changed(backend: Backend, full: Full) -> None:
    with pytest.raises(InsufficientMemory):
        Offloading(backend, str(TINY), LoadParams(gpu_layers=5)).open()
    assert len(full.tried) == 1


def test_without_devices_nothing_is_tried_again(backend: Backend, full: Full) -> None:
    with pytest.raises(InsufficientMemory):
        Opening(backend, str(TINY), LoadParams(gpu_layers=0)).open()
    assert len(full.tried) == 1


MIB = 2**20


@pytest.mark.parametrize("free", [30, 45])
def test_a_cache_that_nobody_asked_for_shrinks_to_the_memory_that_is_free(backend: Backend, free: int) -> None:
    opening = Opening(backend, str(TINY), LoadParams(threads=1), free_memory=free * MIB)
    model, context, context_length = opening.open()
    taken = model.size + context.kv_bytes + context.compute_bytes
    assert 512 <= context.n_cells < 32768
    assert context_length <= context.n_cells
    assert taken <= free * MIB
    context.close()
    model.close()


def test_a_context_that_was_asked_for_is_refused_where_it_does_not_fit(backend: Backend) -> None:
    params = LoadParams(threads=1, context_length=8192, kv_cells=8192)
    with pytest.raises(InsufficientMemory, match="does not fit in RAM"):
        Opening(backend, str(TINY), params, free_memory=9 * MIB).open()


def test_memory_that_is_ample_changes_nothing(backend: Backend) -> None:
    model, context, context_length = Opening(backend, str(TINY), LoadParams(threads=1), free_memory=2**40).open()
    assert (context.n_cells, context_length) == (32768, 8192)
    context.close()
    model.close()


@pytest.mark.parametrize(
    ("params", "streams"),
    [
        ({}, True),
        ({"context_length": 1024}, True),
        ({"parallel": 1}, False),
        ({"kv_cells": 32768}, False),  # a pool is asked for
        ({"context_length": 1000}, False),  # llama.cpp would make it 1024, for each
    ],
)
def test_sequences_have_cells_of_their_own_where_each_has_room_for_a_whole_context(
    backend: Backend, params: dict[str, int], streams: bool
) -> None:
    model, context, context_length = Opening(backend, str(TINY), LoadParams(threads=1, **params)).open()
    assert context.streams == streams
    assert context.n_cells >= context_length * params.get("parallel", 4)
    context.close()
    model.close()


def test_sequences_share_a_pool_where_memory_has_no_room_for_a_whole_context_each(backend: Backend) -> None:
    model, context, _ = Opening(backend, str(TINY), LoadParams(threads=1), free_memory=30 * MIB).open()
    assert not context.streams
    context.close()
    model.close()
