from dataclasses import replace
from pathlib import Path

import pytest

from lmd.engine.context import Context
from lmd.engine.llama import Backend, Model
from lmd.engine.offload import Room, Space, wanted
from lmd.engine.opening import context_params
from lmd.engine.sketch import Sketch, fit_to_devices, read_tensors
from lmd.errors import InsufficientMemory, LoadFailed
from lmd.library.gguf import read_header
from lmd.loading import LoadParams
from tests.lmd.engine.driver import TINY

PARAMS = LoadParams(threads=1)


def sketch_of(backend: Backend, params: LoadParams = PARAMS) -> Sketch:
    return Sketch(backend, str(TINY), params, (), lambda model: context_params(model, params))


def test_tensors_are_sized_by_where_they_can_go() -> None:
    header, weights = read_header(TINY), read_tensors(str(TINY)).weights
    assert weights.blocks == header.block_bytes
    assert weights.total == header.tensor_bytes
    assert weights.n_layers == 5
    assert not header.has_output
    assert weights.copied == weights.input > weights.output > 0, "the embedding is the output matrix too"


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nothing more")
    with pytest.raises(LoadFailed, match=r"bad\.gguf"):
        read_tensors(str(tmp_path / "bad.gguf"))


def test_every_part_of_a_split_model_counts(tmp_path: Path) -> None:
    for i in (1, 2):
        (tmp_path / f"tiny-0000{i}-of-00002.gguf").symlink_to(TINY)
    one, both = read_tensors(str(TINY)), read_tensors(str(tmp_path / "tiny-00001-of-00002.gguf"))
    assert both.weights.total == 2 * one.weights.total
    assert both.vocabulary == one.vocabulary
    (tmp_path / "tiny-00002-of-00002.gguf").unlink()
    with pytest.raises(LoadFailed, match="00002-of-00002"):
        read_tensors(str(tmp_path / "tiny-00001-of-00002.gguf"))


@pytest.mark.parametrize("cells", [512, 4096])
@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_the_plan_is_what_a_real_load_allocates(backend: Backend, cells: int, cache_type: str) -> None:
    params = LoadParams(threads=1, kv_cache_type=cache_type)  # type: ignore[arg-type]
    sketch = sketch_of(backend, params)
    cost = sketch.cost(0, cells)
    model = Model(backend, str(TINY), params, gpu_layers=0)
    context = Context(model, replace(context_params(model, params), n_cells=cells))
    try:
        assert cost.cell * cells == pytest.approx(context.kv_bytes, abs=20_000)
        assert cost.host_compute == context.compute_bytes
        assert sketch.trained_context_length == model.trained_context_length
    finally:
        context.close()
        model.close()


def test_planning_warns_nobody(backend: Backend, capfd: pytest.CaptureFixture[str]) -> None:
    sketch_of(backend).cost(0, 512)
    assert "dummy tokens" in (told := capfd.readouterr().err)
    assert all(line.startswith("<7>") for line in told.splitlines())


def test_what_fits_nowhere_is_refused_with_its_sizes(backend: Backend) -> None:
    space = Space(devices=(Room(free=2**20, usable=1000),), ram=2**20)
    with pytest.raises(InsufficientMemory, match="neither in VRAM nor in RAM") as caught:
        fit_to_devices(sketch_with_device(backend), wanted(PARAMS, 8192, 4), space)
    assert caught.value.hint
    with pytest.raises(InsufficientMemory, match="3 of 5 layers do not fit"):
        fit_to_devices(sketch_with_device(backend), wanted(LoadParams(gpu_layers=3), 8192, 4), space)


def sketch_with_device(backend: Backend) -> Sketch:
    """Planned for the CPU's own memory as if that were a device."""
    return Sketch(backend, str(TINY), PARAMS, backend.devices()[:1], lambda model: context_params(model, PARAMS))
