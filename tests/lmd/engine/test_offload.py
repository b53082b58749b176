from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd.engine.offload import (
    AMPLE_CELLS,
    MARGIN,
    Cost,
    Placement,
    Room,
    Space,
    Wanted,
    Weights,
    cells_that_fit,
    layout,
    place,
    rooms_of,
    usable_devices,
    wanted,
    without,
)
from lmd.loading import Device, LoadParams

MIB = 2**20
WEIGHTS = Weights(input=50 * MIB, blocks=(100 * MIB,) * 10, output=60 * MIB)
COST = Cost(cell=20_000, compute=(30 * MIB,), host_compute=10 * MIB)
WANT = Wanted(context_length=16384, cells=65536, ample=AMPLE_CELLS, least=512, gpu_layers=None)
CARD = Device(name="CUDA0", description="", kind="gpu", memory_total=24 * 2**30, memory_free=20 * 2**30)


def card(mib: int) -> Space:
    return Space(devices=(Room(free=mib * MIB, usable=mib * MIB),), ram=0)


def taken(n: int, cells: int, layers: int = 10) -> int:
    """VRAM that ``n`` layers take: the output layer first, then blocks from the end."""
    return (n and 60 * MIB + 30 * MIB) + (n - 1) * 100 * MIB + int(cells * COST.cell * (n - 1) / layers)


def test_all_layers_and_the_whole_cache_where_there_is_room():
    assert place(WEIGHTS, lambda n: COST, WANT, card(4000)) == Placement(
        gpu_layers=11, cells=65536, context_length=16384
    )


def test_the_cache_gives_way_to_layers_before_layers_give_way():
    tight = place(WEIGHTS, lambda n: COST, WANT, card(1300))
    assert tight is not None
    assert tight.gpu_layers == 11
    assert AMPLE_CELLS < tight.cells < 65536
    assert taken(11, tight.cells) <= 1300 * MIB < taken(11, tight.cells + 20)


def test_layers_give_way_where_not_even_an_ample_cache_fits_beside_them():
    part = place(WEIGHTS, lambda n: COST, WANT, card(600))
    assert part is not None
    assert part.cells >= AMPLE_CELLS
    assert taken(part.gpu_layers, AMPLE_CELLS) <= 600 * MIB < taken(part.gpu_layers + 1, AMPLE_CELLS)


def test_what_was_asked_for_is_kept_and_layers_give_way_to_it():
    part = place(WEIGHTS, lambda n: COST, replace(WANT, cells=60000, ample=60000, least=60000), card(1300))
    assert part is not None
    assert part.cells == 60000
    assert taken(part.gpu_layers, 60000) <= 1300 * MIB < taken(part.gpu_layers + 1, 60000)


@pytest.mark.parametrize("n", range(12))
def test_as_many_layers_as_asked_for_or_nothing(n: int):
    asked = replace(WANT, gpu_layers=n)
    found = place(WEIGHTS, lambda n: COST, asked, card(600))
    if taken(n, WANT.least) <= 600 * MIB:
        assert found is not None
        assert found.gpu_layers == n
    else:
        assert found is None


def test_a_graph_that_grows_with_the_last_layer_keeps_no_other_from_being_offloaded():
    """llama.cpp keeps several copies of the compute buffers where all layers are on several devices (seen: 5 times)."""

    def cost_of(n: int) -> Cost:
        asked.append(n)
        return replace(COST, compute=((500 if n == 11 else 30) * MIB,))

    asked: list[int] = []
    found = place(WEIGHTS, cost_of, WANT, card(550))
    assert found is not None
    assert taken(found.gpu_layers, AMPLE_CELLS) <= 550 * MIB < taken(found.gpu_layers + 1, AMPLE_CELLS)
    assert len(set(asked)) <= 5


def test_more_layers_than_there_are_means_all():
    found = place(WEIGHTS, lambda n: COST, replace(WANT, gpu_layers=99), card(4000))
    assert found is not None
    assert found.gpu_layers == 11


def test_a_tied_embedding_costs_vram_only_where_the_output_layer_is_offloaded():
    tied = replace(WEIGHTS, output=0, copied=50 * MIB)
    assert cells_that_fit(tied, COST, card(79), 1) == 0
    assert cells_that_fit(tied, COST, card(80), 1) > 0
    in_ram = Space(devices=(), ram=(50 + 1000 + 10) * MIB + 20_000)
    assert cells_that_fit(tied, COST, in_ram, 0) == 1


def test_ram_bounds_what_is_not_offloaded():
    space = replace(card(600), ram=700 * MIB)
    found = place(WEIGHTS, lambda n: COST, WANT, space)
    assert found is not None
    in_ram = 11 - found.gpu_layers
    assert (50 + 10 + 100 * in_ram) * MIB + found.cells * COST.cell * in_ram / 10 <= 700 * MIB
    assert place(WEIGHTS, lambda n: COST, WANT, replace(card(600), ram=500 * MIB)) is None


def test_layers_are_dealt_in_runs_by_free_memory_and_blocks_at_the_front_stay_in_ram():
    """The first two as llama.cpp (llama-cpp-python 0.3.36) dealt out Qwen2 0.5 B to two devices of equal size."""
    assert layout(25, 25, [1, 1]) == [0] * 13 + [1] * 12
    assert layout(25, 13, [1, 1]) == [None] * 12 + [0] * 7 + [1] * 6
    assert layout(4, 9, [3, 1]) == [0, 0, 0, 1]
    assert layout(4, 0, [3, 1]) == [None] * 4
    assert layout(4, 4, []) == [None] * 4


@given(
    blocks=st.lists(st.integers(1, 500), min_size=1, max_size=40),
    free=st.lists(st.integers(0, 6000), max_size=4),
    ram=st.integers(1, 20_000),
    asked=st.none() | st.integers(0, 50),
    compute=st.integers(0, 100),
)
def test_whatever_is_placed_fits_on_every_device_and_in_ram(blocks, free, ram, asked, compute):
    weights = Weights(input=7, blocks=tuple(blocks), output=11, copied=3)
    cost = Cost(cell=0.05, compute=(compute,) * len(free), host_compute=5)
    space = Space(devices=tuple(Room(free=n, usable=n * 9 // 10) for n in free), ram=ram)
    want = replace(WANT, gpu_layers=asked)
    found = place(weights, lambda n: cost, want, space)
    if found is None:
        assert asked is not None or 7 + 5 + sum(blocks) + 11 + 512 * 0.05 > ram
        return
    places = layout(weights.n_layers, found.gpu_layers, free)
    for where, room in [*enumerate(device.usable for device in space.devices), (None, ram)]:
        here = [i for i, at in enumerate(places[:-1]) if at == where]
        used = sum(blocks[i] for i in here) + found.cells * cost.cell * len(here) / len(blocks)
        used += (11 if where is None else 14) if places[-1] == where else 0
        used += 12 if where is None else (compute if here or places[-1] == where else 0)
        assert used <= room


def test_a_margin_stays_free_and_a_small_card_keeps_an_eighth():
    small = replace(CARD, memory_total=4 * 2**30, memory_free=4 * 2**30)
    assert [room.usable for room in rooms_of([CARD, small], 0)] == [20 * 2**30 - MARGIN, 7 * 2**29]


def test_a_limit_is_spread_over_the_devices():
    limited = rooms_of([CARD, replace(CARD, memory_free=11 * 2**30)], 10 * 2**30)
    assert sum(room.usable for room in limited) == pytest.approx(10 * 2**30, rel=0.01)
    assert [room.free for room in limited] == [20 * 2**30, 11 * 2**30]
    assert rooms_of([CARD], 10**15) == rooms_of([CARD], 0)


def test_a_device_that_tells_nothing_of_its_memory_does_not_bound_the_load():
    (room,) = rooms_of([replace(CARD, memory_total=0, memory_free=0)], 0)
    assert room.usable > 2**48


def test_another_models_memory_is_taken_off_each_device_in_proportion():
    rooms = (Room(free=300, usable=200), Room(free=100, usable=10))
    assert [room.usable for room in without(rooms, 100)] == [125, 0]


def test_integrated_gpus_are_used_where_there_are_no_others():
    integrated, cpu = replace(CARD, kind="igpu"), replace(CARD, kind="cpu")
    assert usable_devices([cpu, integrated, CARD]) == (CARD,)
    assert usable_devices([cpu, integrated]) == (integrated,)
    assert usable_devices([cpu]) == ()


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({}, (16384, 65536, 4096, 512)),
        ({"context_length": 8192}, (8192, 32768, 8192, 8192)),
        ({"kv_cells": 1000}, (1000, 1000, 1000, 1000)),
        ({"context_length": 2000, "kv_cells": 1000}, (1000, 1000, 1000, 1000)),
        ({"context_length": 100}, (100, 400, 100, 100)),
    ],
)
def test_what_a_load_wants(params, expected):
    found = wanted(LoadParams(**params), trained=131072, parallel=4)
    assert (found.context_length, found.cells, found.ample, found.least) == expected


def test_a_small_model_wants_no_more_context_than_it_was_trained_for():
    assert wanted(LoadParams(), trained=300, parallel=2).context_length == 300
    assert wanted(LoadParams(gpu_layers="auto"), trained=300, parallel=2).gpu_layers is None
    assert wanted(LoadParams(gpu_layers=3), trained=300, parallel=2).gpu_layers == 3
