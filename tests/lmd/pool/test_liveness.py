import asyncio

import pytest

from lmd.errors import QueueTimeout
from tests.lmd.pool.rig import Rig, settle, want

A, B = want("a", 6), want("b", 6)


@pytest.fixture
async def rig():
    rig = await Rig().start()
    yield rig
    await rig.pool.stop()


async def test_a_pool_that_acts_is_never_overdue(rig):
    assert rig.pool.is_empty
    holder, waiting = rig.request(A), rig.request(B)
    await settle()
    assert rig.pool.overdue() == ""
    await rig.advance(200)  # a model that loads for ever is no reason
    assert rig.pool.overdue() == ""
    await rig.advance(101)
    assert rig.pool.overdue() == ""
    with pytest.raises(QueueTimeout):
        await waiting
    await rig.finish_loads(6)
    await rig.answer(rig.of("a"))
    await holder
    assert rig.pool.overdue() == ""
    assert not rig.pool.is_empty
    await rig.advance(61)
    assert rig.pool.overdue() == ""
    assert rig.pool.is_empty


async def test_a_pool_that_does_not_act_on_time_is_overdue(rig, monkeypatch):
    await rig.served(A, 6)
    monkeypatch.setattr(rig.pool._pump, "_leave_by_time", lambda now: None)
    await rig.advance(61)
    assert rig.pool.overdue() == "'a' should have left, and stays"


async def test_a_request_that_nobody_times_out_is_overdue(rig, monkeypatch):
    holder, waiting = rig.request(A), rig.request(B)
    await settle()
    monkeypatch.setattr(rig.pool._pump, "_time_out", lambda now: None)
    await rig.advance(301)
    assert rig.pool.overdue() == "a request for 'b' waits beyond its time"
    for request in (holder, waiting):
        request.cancel()
    await asyncio.gather(holder, waiting, return_exceptions=True)


async def test_a_load_that_ends_without_consequence_is_overdue(rig, monkeypatch):
    monkeypatch.setattr(rig.pool._lifecycle, "_load_ended", lambda instance, task: None)
    waiting = rig.request(A)
    await settle()
    await rig.finish_loads(6)
    assert rig.pool.overdue() == "the load of 'a' has ended, and nothing has come of it"
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)


async def test_an_ended_instance_that_still_counts_is_overdue(rig, monkeypatch):
    await rig.served(A, 6)
    monkeypatch.setattr(rig.pool._lifecycle, "remove", lambda instance: None)
    unloading = asyncio.ensure_future(rig.pool.unload("a"))
    await settle()
    assert rig.pool.overdue() == "'a' has ended, and still counts"
    await unloading
