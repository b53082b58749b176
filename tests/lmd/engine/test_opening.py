import pytest

from lmd.engine import opening as module
from lmd.engine.llama import Backend, Context, ContextParams, Model
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
