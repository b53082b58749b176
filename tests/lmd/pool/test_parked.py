"""Workers that keep the vocabulary of a model that made room for another."""

import asyncio

import pytest

from lmd.pool.wanted import Origin
from tests.lmd.pool.rig import GIB, Rig, settle, want

A, B, C = want("a", 6), want("b", 6), want("c", 6)


@pytest.fixture
async def rig():
    """Two of the models do not fit together."""
    rig = await Rig(parks=True, parked=1).start()
    yield rig
    await rig.pool.stop()
    assert rig.alive() == []


def parked(rig):
    return [worker.name for worker in rig.alive() if worker.parked]


async def swap(rig, wanted):
    """Serve it, once what is there may be evicted."""
    await rig.advance(4)
    return await rig.served(wanted, 6)


async def test_the_worker_of_a_model_that_made_room_serves_it_again(rig):
    first = await swap(rig, A)
    second = await swap(rig, B)
    assert parked(rig) == ["a"]
    assert await swap(rig, A) is first
    assert await swap(rig, B) is second
    assert (len(rig.workers), parked(rig)) == (3, ["a"])  # one told at the start what devices there are


async def test_no_more_stay_than_may_and_the_one_that_came_first_leaves(rig):
    for wanted in (A, B, C):
        await swap(rig, wanted)
    assert parked(rig) == ["b"]


async def test_none_stays_where_none_may(rig):
    rig.settings.parked = 0
    await swap(rig, A)
    await swap(rig, B)
    assert (len(rig.workers), len(rig.alive())) == (3, 1)


async def test_it_stays_as_long_as_the_model_would_have(rig):
    await swap(rig, want("a", 6, ttl=20.0))
    await swap(rig, want("b", 6, ttl=None))
    assert parked(rig) == ["a"]
    await rig.advance(10)
    assert parked(rig) == ["a"]
    await rig.advance(10)
    assert parked(rig) == []


async def test_it_leaves_with_the_last_model(rig):
    await swap(rig, A)
    await swap(rig, want("b", 6, ttl=10.0))
    assert parked(rig) == ["a"]
    await rig.advance(11)
    assert rig.alive() == []


async def test_what_left_for_another_reason_keeps_nothing(rig):
    await rig.served(want("a", ttl=5.0))
    await rig.loaded(want("b"))
    await rig.advance(6)
    assert (rig.states(), parked(rig)) == ({"b": "ready"}, [])
    await rig.pool.unload("b")
    assert rig.alive() == []


async def test_unloading_everything_ends_it_too(rig):
    await swap(rig, A)
    await swap(rig, B)
    await rig.pool.unload_all()
    await settle()
    assert rig.alive() == []


async def test_another_load_configuration_does_not_get_it(rig):
    first = await swap(rig, A)
    await swap(rig, B)
    other = await swap(rig, want("a", 6, context_length=64))
    assert other is not first


async def test_it_gives_way_to_a_load_that_needs_its_memory(rig):
    await swap(rig, A)
    await swap(rig, B)
    rig.vocabulary = GIB // 2
    load = asyncio.ensure_future(rig.pool.load(want("big", 4, origin=Origin.EXPLICIT)))
    await settle()
    assert parked(rig) == []
    assert [worker.name for worker in rig.loading()] == ["big"]
    await rig.finish_loads(4)
    await load
    assert rig.states() == {"b": "ready", "big": "ready"}


async def test_what_fits_without_it_is_not_refused_as_too_large(rig):
    await swap(rig, A)
    await swap(rig, B)
    rig.vocabulary = GIB
    await rig.advance(4)
    request = rig.request(want("huge", 9.5))
    await settle()
    await rig.finish_loads(9.5)
    await rig.answer(rig.of("huge"))
    assert await request == "huge: ok"


async def test_one_that_dies_while_it_waits_is_not_missed(rig):
    first = await swap(rig, A)
    await swap(rig, B)
    first.die()
    await settle()
    assert await swap(rig, A) is not first


async def test_one_that_dies_as_it_is_taken_is_replaced_by_another(rig):
    first = await swap(rig, A)
    await swap(rig, B)
    await rig.advance(4)
    request = rig.request(A)
    await settle()
    assert rig.loading() == [first]
    first.die()
    await settle()
    await rig.finish_loads(6)
    await rig.answer(rig.of("a"))
    assert await request == "a: ok"
    assert rig.of("a") is not first


async def test_a_death_after_the_second_load_is_noticed_once(rig):
    first = await swap(rig, A)
    await swap(rig, B)
    await swap(rig, A)
    first.die()
    await settle()
    assert rig.pool.rows()[0].deaths == 1
    assert await swap(rig, A) is not first
