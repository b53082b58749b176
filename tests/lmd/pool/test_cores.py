"""Instances that compute at the same time share the cores."""

from dataclasses import replace

import pytest

from tests.lmd.pool.rig import Rig, settle, want


@pytest.fixture
async def rig():
    rig = await Rig(gib=10).start()
    yield rig
    await rig.pool.stop()


async def test_those_that_are_busy_are_told_how_many_they_are(rig):
    a, b, c = [await rig.loaded(want(name)) for name in "abc"]
    assert [worker.n_busy for worker in (a, b, c)] == [1, 1, 1]
    first = rig.request(want("a"))
    second = rig.request(want("b"))
    await settle()
    assert [worker.n_busy for worker in (a, b, c)] == [2, 2, 1]
    again = rig.request(want("b"))
    await settle()
    assert [worker.n_busy for worker in (a, b, c)] == [2, 2, 1]
    await rig.answer(a)
    await first
    assert b.n_busy == 1
    third = rig.request(want("c"))
    await settle()
    assert [worker.n_busy for worker in (b, c)] == [2, 2]
    for worker in (b, c):
        await rig.answer(worker)
    for request in (second, again, third):
        await request


async def test_one_that_dies_leaves_its_cores_to_the_others(rig):
    a, b = [await rig.loaded(want(name)) for name in "ab"]
    first, second = rig.request(want("a")), rig.request(want("b"))
    await settle()
    assert a.n_busy == 2
    b.die()
    await settle()
    assert a.n_busy == 1
    await rig.answer(a)
    await first
    with pytest.raises(Exception, match="SIGKILL"):
        await second


async def test_one_that_is_all_on_a_gpu_takes_no_cores(rig):
    a, b = [await rig.loaded(want(name)) for name in "ab"]
    offloaded = next(instance for instance in rig.pool._instances if instance.worker is b)
    offloaded.loaded = replace(offloaded.loaded, gpu_layers=offloaded.loaded.n_layers + 1)
    requests = [rig.request(want("a")), rig.request(want("b"))]
    await settle()
    assert (a.n_busy, b.n_busy) == (1, 1)
    for worker in (a, b):
        await rig.answer(worker)
    for request in requests:
        await request
