import asyncio

import pytest

from lmd.errors import LoadFailed
from tests.lmd.pool.rig import Rig, settle, want

A, B = want("a"), want("b")


@pytest.fixture
async def rig():
    rig = await Rig(standby=True).start()
    yield rig
    await rig.pool.stop()
    assert rig.alive() == []


async def test_a_load_takes_the_worker_that_waits_and_its_successor_starts_beside_it(rig):
    (standby,) = rig.workers
    request = rig.request(A)
    await settle()
    assert rig.loading() == [standby]
    assert len(rig.workers) == 2
    await rig.finish_loads()
    assert len(rig.workers) == 2
    await rig.answer(standby)
    await request
    assert rig.pool.facts == rig.workers[1].facts


async def test_after_a_load_that_got_no_worker_one_waits_again_as_soon_as_one_can_start():
    rig = await Rig(standby=False).start()
    rig.settings.standby = True
    rig.spawn_error = LoadFailed("no memory")
    with pytest.raises(LoadFailed):
        await rig.request(A)
    rig.spawn_error = None
    await rig.advance(70)
    assert len(rig.alive()) == 1
    await rig.pool.stop()


async def test_two_loads_at_once_both_get_a_worker(rig):
    requests = [rig.request(A), rig.request(B)]
    await settle()
    assert len(rig.loading()) == 2
    await rig.finish_loads()
    for worker in rig.loading() + rig.workers:
        await rig.answer(worker)
    await asyncio.gather(*requests)


async def test_one_that_dies_while_it_waits_is_replaced_with_back_off(rig):
    rig.workers[0].die()
    await settle()
    assert len(rig.workers) == 1
    await rig.advance(1.1)
    assert len(rig.alive()) == 1
    rig.spawn_error = LoadFailed("no memory")
    rig.alive()[0].die()
    await rig.advance(1.1)
    rig.spawn_error = None
    await rig.advance(1.1)
    assert rig.alive() == []
    await rig.advance(1.0)
    assert len(rig.alive()) == 1


async def test_a_dead_standby_is_not_given_to_a_load(rig):
    rig.workers[0].die()
    request = rig.request(A)
    await settle()
    await rig.finish_loads()
    await rig.answer(rig.of("a"))
    assert await request == "a: ok"


async def test_an_abandoned_load_ends_the_worker_that_it_took(rig):
    request = rig.request(A)
    await settle()
    taken = rig.loading()[0]
    request.cancel()
    await settle()
    assert taken.gone.done()
    assert len(rig.alive()) == 1


async def test_without_standby_nobody_waits_but_the_devices_are_known():
    rig = await Rig(standby=False).start()
    assert rig.alive() == []
    assert rig.pool.facts is not None
    await rig.served(A)
    assert len(rig.alive()) == 1
    await rig.pool.stop()
