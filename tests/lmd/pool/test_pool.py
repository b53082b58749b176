import asyncio
from dataclasses import replace
from math import inf

import pytest

from lmd.errors import (
    Conflict,
    Draining,
    InstanceNotFound,
    InsufficientMemory,
    LoadFailed,
    ModelFileError,
    Overloaded,
    QueueTimeout,
    Unloaded,
    WorkerDied,
)
from lmd.loading import LoadParams
from lmd.pool.wanted import Origin
from tests.lmd.pool.rig import SAY, Rig, settle, want

A, B, C = want("a", 6), want("b", 6), want("c", 1)


@pytest.fixture
async def rig():
    rig = await Rig().start()
    yield rig
    await rig.pool.stop()
    assert rig.alive() == []


async def test_many_requests_share_one_load(rig):
    requests = [rig.request(A) for _ in range(20)]
    await settle()
    assert len(rig.loading()) == 1
    await rig.finish_loads(6)
    await rig.answer(rig.of("a"))
    assert await asyncio.gather(*requests) == ["a: ok"] * 20


async def test_progress_reaches_every_waiter_and_never_falls(rig):
    seen = [[], []]
    requests = [rig.request(A, seen[n].append) for n in range(2)]
    await settle()
    for fraction in (0.2, 0.1, 0.7):
        rig.loading()[0].on_progress(fraction)
    assert seen == [[0.2, 0.7]] * 2
    assert rig.pool.rows()[0].progress == 0.7
    for request in requests:
        request.cancel()


async def test_a_client_that_leaves_does_not_end_the_load_for_the_others(rig):
    first, second = rig.request(A), rig.request(A)
    await settle()
    first.cancel()
    await settle()
    await rig.finish_loads(6)
    await rig.answer(rig.of("a"))
    assert await second == "a: ok"


async def test_a_load_that_nobody_waits_for_any_more_is_abandoned(rig):
    requests = [rig.request(A), rig.request(A)]
    await settle()
    worker = rig.loading()[0]
    for request in requests:
        request.cancel()
    await settle()
    assert worker.ending
    assert rig.pool.rows() == []


async def test_an_explicit_load_goes_on_when_its_caller_leaves(rig):
    load = asyncio.ensure_future(rig.pool.load(want("a", origin=Origin.EXPLICIT)))
    await settle()
    load.cancel()
    await settle()
    await rig.finish_loads()
    assert rig.states() == {"a": "ready"}


async def test_ttl_runs_from_the_end_of_the_last_lease(rig):
    worker = await rig.served(A, 6)
    await rig.advance(59)
    assert rig.pool.rows()[0].expires_in == pytest.approx(1)
    request = rig.request(A)
    await rig.advance(1000)
    assert rig.pool.rows()[0].expires_in is None  # does not run while a stream is open
    await rig.answer(worker)
    await request
    await rig.advance(59.9)
    assert rig.states() == {"a": "ready"}
    await rig.advance(0.2)
    assert rig.states() == {}
    assert worker.gone.done()


@pytest.mark.parametrize("wanted", [want("a", ttl=None), want("a", ttl=inf), want("a", ttl=1, pinned=True)])
async def test_what_never_expires_stays(rig, wanted):
    await rig.served(wanted)
    await rig.advance(1e6)
    assert rig.states() == {"a": "ready"}


async def test_ttl_zero_leaves_with_the_last_lease(rig):
    await rig.served(want("a", ttl=0.0))
    await settle()
    assert rig.states() == {}


async def test_the_least_recently_used_idle_instance_makes_room(rig):
    for name in "xyz":
        await rig.served(want(name, 3), 3)
        await rig.advance(1)
    await rig.served(want("x", 3), 3)
    await rig.advance(1)
    request = rig.request(want("new", 3))
    await settle()
    assert rig.states() == {"x": "ready", "z": "ready", "new": "loading"}
    request.cancel()


async def test_nothing_leaves_that_a_load_does_not_need(rig):
    await rig.served(want("small", 1), 1)
    await rig.advance(1)
    await rig.served(want("large", 7), 7)
    await rig.advance(10)
    await rig.served(want("new", 6), 6)
    assert rig.states() == {"small": "ready", "new": "ready"}


async def test_leased_and_pinned_instances_are_not_evicted(rig):
    pinned = await rig.served(want("pinned", 3, pinned=True), 3)
    lease = rig.request(want("leased", 3))
    await settle()
    await rig.finish_loads(3)
    waiting = rig.request(want("new", 6))
    await rig.advance(200)
    assert rig.states() == {"pinned": "ready", "leased": "ready", "new": "starting"}
    assert not pinned.ending
    await rig.answer(rig.of("leased"))
    await lease
    assert rig.states() == {"pinned": "ready", "new": "loading"}
    await rig.finish_loads(6)
    await rig.answer(rig.of("new"))
    assert await waiting == "new: ok"


async def test_a_load_begins_only_when_the_evicted_process_is_gone():
    rig = await Rig(stops_at_once=False).start()
    old = await rig.served(A, 6)
    await rig.advance(10)
    request = rig.request(B)
    await settle()
    assert rig.states() == {"a": "draining", "b": "starting"}
    old.let_stop()
    await settle()
    assert rig.states() == {"b": "loading"}
    await rig.finish_loads(6)
    await rig.answer(rig.of("b"))
    assert await request == "b: ok"
    rig.stops_at_once = True
    await stop(rig)


async def stop(rig):
    stopping = asyncio.ensure_future(rig.pool.stop())
    await settle()
    for worker in rig.alive():
        worker.let_stop()
    await stopping


async def test_queueing_is_first_in_first_out(rig):
    held = rig.request(A)
    await settle()
    await rig.finish_loads(6)
    large, small = rig.request(B), rig.request(C)
    await settle()
    # c would fit at once, but then b might wait for ever.
    assert rig.states() == {"a": "ready", "b": "starting", "c": "starting"}
    await rig.answer(rig.of("a"))
    await held
    await rig.advance(1)
    assert rig.states() == {"b": "loading", "c": "loading"}
    for request in (large, small):
        request.cancel()


async def test_a_wait_ends_after_queue_timeout_and_names_what_is_in_the_way(rig):
    held = rig.request(A)
    await settle()
    await rig.finish_loads(6)
    waiting = rig.request(B)
    await rig.advance(299)
    assert not waiting.done()
    await rig.advance(2)
    with pytest.raises(QueueTimeout, match=r"'b' waited 300 s.*'a' \(6\.0 GiB, 1 open requests\)") as error:
        await waiting
    assert error.value.retry_after > 0
    assert rig.states() == {"a": "ready"}
    held.cancel()


async def test_what_can_never_fit_is_refused_at_once_with_the_figures(rig):
    await rig.served(C, 1)
    with pytest.raises(InsufficientMemory, match=r"at least 12\.0 GiB .* 10\.0 GiB would be free"):
        await rig.request(want("huge", 12))
    assert rig.states() == {"c": "ready"}


async def test_memory_limit_binds(rig):
    rig.settings.memory_limit = 5 * 2**30
    with pytest.raises(InsufficientMemory, match="memory_limit is 5"):
        await rig.request(A)
    await rig.served(want("x", 3), 3)
    await rig.advance(10)
    await rig.served(want("y", 3), 3)
    assert rig.states() == {"y": "ready"}


async def test_max_loaded_caps_the_count(rig):
    rig.settings.max_loaded = 2
    for name in "xyz":
        await rig.served(want(name), 1)
        await rig.advance(5)
    assert rig.states() == {"y": "ready", "z": "ready"}


async def test_where_only_the_count_is_full_a_load_begins_beside_the_end_of_the_one_that_leaves(rig):
    rig.stops_at_once = False
    rig.settings.max_loaded = 1
    await rig.served(want("x"), 1)
    old = rig.of("x")
    rig.stops_at_once = True
    await rig.advance(5)
    request = rig.request(want("y"))
    await settle()
    assert rig.states() == {"x": "draining", "y": "loading"}
    old.let_stop()
    await rig.finish_loads(1)
    await rig.answer(rig.of("y"))
    await request
    assert rig.states() == {"y": "ready"}


async def test_eviction_last_keeps_only_the_last_jit_loaded_one(rig):
    rig.settings.eviction = "last"
    await rig.loaded(want("explicit", origin=Origin.EXPLICIT))
    for name in "xyz":
        await rig.served(want(name), 1)
        await rig.advance(5)
    assert rig.states() == {"explicit": "ready", "z": "ready"}


async def test_two_models_that_do_not_fit_together_take_turns(rig):
    """Clients in a loop on both: each gets a whole residency, and nobody waits for ever."""
    loads = 0
    served = {"a": 0, "b": 0}

    async def client(wanted):
        while True:
            text = await rig._request(wanted, None)
            served[text[0]] += 1

    clients = [asyncio.ensure_future(client(wanted)) for wanted in (A, A, B, B)]
    for _ in range(1200):  # 120 s in steps of 0.1 s
        await settle()
        for worker in rig.loading():
            loads += 1
            rig.finish(worker, 6)
        await settle()
        for worker in rig.alive():
            await rig.answer(worker)
        await rig.advance(0.01)
        for worker in rig.alive():
            await rig.answer(worker)
        await rig.advance(0.09)
    for task in clients:
        task.cancel()
    await settle()
    assert 20 <= loads <= 45  # a turn is the residency of 3 s and little more
    assert served["a"] > 10 * loads / 2
    assert served["b"] > 10 * loads / 2


async def test_requests_for_a_closing_instance_go_back_to_it_when_nobody_needs_its_memory(rig):
    held = rig.request(A)
    await settle()
    await rig.finish_loads(6)
    await rig.advance(10)
    other = rig.request(B)
    late = rig.request(A)
    await settle()
    assert sorted(rig.states().values()) == ["ready", "starting", "starting"]
    other.cancel()
    await settle()
    assert rig.states() == {"a": "ready"}
    assert rig.pool.rows()[0].leases == 2
    await rig.answer(rig.of("a"))
    assert await held == await late == "a: ok"


async def test_kill_9_ends_the_answer_and_the_next_request_gets_a_fresh_worker(rig):
    other = rig.request(C)
    request = rig.request(A)
    await settle()
    await rig.finish_loads(1)
    dead = rig.of("a")
    dead.die()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await request
    again = rig.request(A)
    await settle()
    assert rig.of("a") is not dead
    await rig.finish_loads(6)
    await rig.answer(rig.of("a"))
    assert await again == "a: ok"
    await rig.answer(rig.of("c"))
    assert await other == "c: ok"


async def test_repeated_deaths_back_off_visibly_and_an_explicit_load_clears_it(rig):
    for attempt in range(3):
        request = rig.request(A)
        await settle()
        rig.loading()[0].fail_load()
        with pytest.raises(LoadFailed):
            await request
        await rig.advance(0 if attempt == 2 else 1.5)
    (row,) = rig.pool.rows()
    assert (row.id, row.state, row.deaths, row.retry_in) == ("a", "backoff", 3, 2.0)
    assert "no model" in row.error
    with pytest.raises(Overloaded, match="3 times") as refused:
        await rig.request(A)
    assert refused.value.retry_after == 2.0
    await rig.loaded(want("a", 6, origin=Origin.EXPLICIT), 6)
    (row,) = rig.pool.rows()
    assert (row.state, row.deaths) == ("ready", 0)


async def test_after_the_back_off_it_is_tried_again(rig):
    for _ in range(2):
        request = rig.request(A)
        await settle()
        rig.loading()[0].fail_load()
        with pytest.raises(LoadFailed):
            await request
    await rig.advance(1.01)
    await rig.served(A, 6)
    assert rig.states() == {"a": "ready"}


async def test_what_the_worker_says_of_a_file_reaches_every_waiter(rig):
    requests = [rig.request(A) for _ in range(3)]
    await settle()
    rig.loading()[0].fail_load(ModelFileError("cut short", hint="Get it again."))
    for request in requests:
        with pytest.raises(ModelFileError) as error:
            await request
        assert error.value.hint == "Get it again."
    assert len(rig.pool.rows()) == 1


async def test_a_worker_that_cannot_be_started_fails_the_load(rig):
    rig.spawn_error = LoadFailed("no python")
    with pytest.raises(LoadFailed, match="no python"):
        await rig.request(A)


async def test_unload_is_refused_while_leased_unless_forced(rig):
    request = rig.request(A)
    await settle()
    await rig.finish_loads(6)
    with pytest.raises(Conflict, match="serving 1 request"):
        await rig.pool.unload("a")
    assert await rig.pool.unload("a", force=True) == "a"
    with pytest.raises(Unloaded):
        await request
    with pytest.raises(InstanceNotFound):
        await rig.pool.unload("a")


async def test_unload_all_leaves_what_is_leased_unless_forced(rig):
    await rig.served(C, 1)
    request = rig.request(A)
    await settle()
    await rig.finish_loads(6)
    assert await rig.pool.unload_all() == ["c"]
    assert await rig.pool.unload_all(force=True) == ["a"]
    with pytest.raises(Unloaded):
        await request


async def test_a_load_of_what_is_loaded_takes_it_over(rig):
    await rig.served(A, 6)
    outcome = await rig.pool.load(want("a", 6, ttl=None, origin=Origin.EXPLICIT, identifier="mine"))
    assert outcome.already
    assert outcome.instance.id == "mine"
    await rig.advance(1e6)
    assert rig.states() == {"mine": "ready"}
    assert rig.pool.find("mine").model.key == "a"
    assert rig.pool.find("a") is None


async def test_an_identifier_in_use_is_refused(rig):
    await rig.loaded(want("c", identifier="mine", origin=Origin.EXPLICIT))
    with pytest.raises(Conflict, match="mine"):
        await rig.pool.load(want("d", identifier="mine", origin=Origin.EXPLICIT))


async def test_a_request_by_name_is_served_by_what_was_loaded_explicitly_under_it(rig):
    worker = await rig.loaded(want("c", context_length=2048, origin=Origin.EXPLICIT))
    request = rig.request(C)
    await settle()
    await rig.answer(worker)
    assert await request == "c: ok"
    assert len(rig.pool.rows()) == 1


async def test_a_different_load_configuration_is_another_instance(rig):
    await rig.served(C, 1)
    await rig.served(want("c", context_length=64), 1)
    assert sorted(rig.states()) == ["c", "c:2"]


async def test_a_stale_instance_serves_on_and_leaves_when_idle(rig):
    new = want("c", context_length=64)
    request = rig.request(C)
    await settle()
    await rig.finish_loads(1)
    rig.pool.mark_stale("c", new)
    late = rig.request(new)
    await settle()
    assert [(row.id, row.stale, row.leases) for row in rig.pool.rows()] == [("c", True, 2)]
    await rig.answer(rig.of("c"))
    await request
    await late
    assert rig.states() == {}
    await rig.served(new)
    assert rig.pool.find("c").load.context_length == 64


async def test_a_stale_instance_that_was_loaded_on_purpose_is_replaced(rig):
    await rig.loaded(want("c", origin=Origin.PRELOAD))
    rig.pool.mark_stale("c", want("c", context_length=64))
    await settle()
    assert rig.loading()[0].request.params.context_length == 64
    await rig.finish_loads()
    assert rig.states() == {"c": "ready"}


async def test_an_instance_that_another_preset_shares_is_not_stale(rig):
    first, second = want("c"), want("c")
    object.__setattr__(second, "name", "alias")
    await rig.served(first)
    await rig.served(second)
    rig.pool.mark_stale("c", want("c", context_length=64))
    await settle()
    assert [(row.id, row.stale) for row in rig.pool.rows()] == [("c", False)]
    rig.pool.mark_stale("alias", None)
    await settle()
    assert rig.states() == {}


async def test_the_instance_of_a_deleted_preset_drains(rig):
    request = rig.request(C)
    await settle()
    await rig.finish_loads(1)
    rig.pool.mark_stale("c", None)
    assert rig.states() == {"c": "draining"}
    await rig.answer(rig.of("c"))
    assert await request == "c: ok"
    assert rig.states() == {}


async def test_an_instance_that_retires_is_not_taken_back_beside_its_successor(rig):
    first = rig.request(C)
    await settle()
    await rig.finish_loads(1)
    old = rig.of("c")
    rig.pool.mark_stale("c", None)
    second = rig.request(C)  # the preset is back, as it was
    await settle()
    await rig.finish_loads(1)
    assert rig.states() == {"c": "draining", "c:2": "ready"}
    rig.pool.mark_stale("c", want("c", context_length=64))
    assert [(row.id, row.state, row.stale) for row in rig.pool.rows()] == [
        ("c", "draining", False),
        ("c:2", "ready", True),
    ]
    for worker in (old, rig.of("c:2")):
        await rig.answer(worker)
    await asyncio.gather(first, second)
    assert rig.states() == {}


async def test_an_edit_that_is_taken_back_ends_the_staleness(rig):
    request = rig.request(C)
    await settle()
    await rig.finish_loads(1)
    rig.pool.mark_stale("c", want("c", context_length=64))
    rig.pool.mark_stale("c", C)
    assert not rig.pool.rows()[0].stale
    await rig.answer(rig.of("c"))
    await request
    assert rig.states() == {"c": "ready"}


async def test_what_a_load_was_told_survives_an_edit_of_its_preset(rig):
    told = {"ttl": None, "ttl_is_own": True, "origin": Origin.EXPLICIT, "overrides": LoadParams(context_length=64)}
    await rig.loaded(want("c", context_length=64, **told))
    rig.pool.mark_stale("c", want("c", ttl=5.0, context_length=2048))
    await rig.advance(60)
    assert [(row.context_length, row.stale, row.ttl) for row in rig.pool.rows()] == [(64, False, None)]
    rig.pool.mark_stale("c", want("c", 2, ttl=5.0, parallel=2))  # another model, and another setting
    await settle()
    asked = rig.loading()[0].request.params
    assert (asked.context_length, asked.parallel) == (64, 2)
    await rig.finish_loads(2)
    await rig.advance(60)
    assert [(row.id, row.ttl) for row in rig.pool.rows()] == [("c", None)]


async def test_the_ttl_that_a_request_set_survives_an_edit_of_the_presets(rig):
    await rig.served(want("c", ttl=500.0, ttl_is_own=True))
    await rig.served(want("b", ttl=500.0))
    for name in "cb":
        rig.pool.mark_stale(name, want(name, ttl=7.0))
    assert {row.id: row.ttl for row in rig.pool.rows()} == {"c": 500.0, "b": 7.0}


async def test_a_load_of_a_stale_instance_brings_up_the_new_one(rig):
    request = rig.request(C)
    await settle()
    await rig.finish_loads(1)
    old, new = rig.of("c"), want("c", context_length=64, origin=Origin.EXPLICIT)
    rig.pool.mark_stale("c", new)
    load = asyncio.ensure_future(rig.pool.load(new))
    await settle()
    await rig.finish_loads(1)
    outcome = await load
    assert (outcome.already, outcome.instance.context_length) == (False, 64)
    assert rig.states() == {"c": "ready", "c:old": "draining"}
    await rig.answer(old)
    assert await request == "c:old: ok"


async def test_an_edited_name_leaves_the_instance_that_another_name_keeps(rig):
    alias = replace(C, name="alias")
    await rig.served(C)
    await rig.served(alias)
    assert rig.pool.names() == {"c": ["c"], "alias": ["c"]}
    edited = want("c", context_length=64)
    rig.pool.mark_stale("c", edited)
    assert rig.pool.names() == {"alias": ["c"]}
    assert rig.pool.find("c") is None
    await rig.served(edited)
    assert rig.pool.names() == {"alias": ["c"], "c": ["c:2"]}
    await rig.served(alias)
    assert len(rig.pool.rows()) == 2


async def test_an_edited_name_is_loaded_anew_though_another_name_of_its_instance_was_loaded_on_purpose(rig):
    await rig.served(C)
    await rig.loaded(replace(C, name="key", origin=Origin.EXPLICIT))
    edited = want("c", context_length=64)
    rig.pool.mark_stale("c", edited)
    await rig.served(edited)
    assert [(row.id, row.context_length) for row in rig.pool.rows()][1:] == [("c:2", 64)]


async def test_reload_brings_the_new_worker_up_before_the_old_one_drains(rig):
    request = rig.request(C)
    await settle()
    await rig.finish_loads(1)
    old = rig.of("c")
    new = want("c", context_length=64, origin=Origin.EXPLICIT)
    load = asyncio.ensure_future(rig.pool.load(new, reload=True))
    await settle()
    assert rig.states() == {"c": "ready", "c:2": "loading"}
    await rig.finish_loads(1)
    outcome = await load
    assert outcome.instance.id == "c"
    assert not outcome.already
    assert rig.states() == {"c": "ready", "c:old": "draining"}
    await rig.answer(old)
    await request
    assert rig.states() == {"c": "ready"}
    assert rig.pool.find("c").load.context_length == 64


@pytest.mark.parametrize("edited", [False, True])
async def test_reload_replaces_what_is_still_loading_with_other_settings(rig, edited):
    request = rig.request(C)
    await settle()
    old, wanted = rig.of("c"), want("c", context_length=64, origin=Origin.EXPLICIT)
    if edited:
        rig.pool.mark_stale("c", wanted)
    load = asyncio.ensure_future(rig.pool.load(wanted, reload=True))
    await settle()
    assert rig.states() == {"c": "loading", "c:2": "loading"}
    rig.finish(rig.of("c:2"), 1)
    await settle()
    assert ((await load).instance.id, (await load).instance.context_length) == ("c", 64)
    assert rig.states() == {"c:old": "loading", "c": "ready"}
    rig.finish(old, 1)  # who waited for it is served by it
    await settle()
    await rig.answer(old)
    assert await request == "c:old: ok"
    assert rig.states() == {"c": "ready"}


async def test_what_loads_other_settings_is_replaced_when_it_is_ready_where_memory_does_not_allow_both(rig):
    request = rig.request(want("a", 6))
    await settle()
    load = asyncio.ensure_future(rig.pool.load(want("a", 6, context_length=64, origin=Origin.EXPLICIT), reload=True))
    await settle()
    assert rig.states() == {"a": "loading", "a:2": "starting"}
    await rig.finish_loads(6)
    await rig.answer(rig.of("a"))
    assert await request == "a: ok"
    await rig.finish_loads(6)
    assert (await load).instance.context_length == 64
    assert len(rig.pool.rows()) == 1


async def test_reloads_at_once_share_one_new_worker(rig):
    await rig.loaded(C)
    loads = [asyncio.ensure_future(rig.pool.load(C, reload=True)) for _ in range(2)]
    await settle()
    assert rig.states() == {"c": "ready", "c:2": "loading"}
    await rig.finish_loads(1)
    assert [(await load).instance.id for load in loads] == ["c", "c"]
    assert rig.states() == {"c": "ready"}


@pytest.mark.parametrize("first_fails", [False, True])
async def test_of_two_reloads_with_different_settings_the_later_one_stays(rig, first_fails):
    await rig.loaded(C)
    lengths = (64, 128)
    first, last = (
        asyncio.ensure_future(rig.pool.load(want("c", context_length=n, origin=Origin.EXPLICIT), reload=True))
        for n in lengths
    )
    await settle()
    rig.finish(rig.of("c:3"), 1)
    await settle()
    assert ((await last).instance.id, (await last).instance.context_length) == ("c", 128)
    (worker,) = rig.loading()
    if first_fails:
        worker.fail_load()
        with pytest.raises(LoadFailed):
            await first
    else:
        rig.finish(worker, 1)
        await first
    await settle()
    assert [(row.id, row.state, row.context_length) for row in rig.pool.rows() if row.state != "dead"] == [
        ("c", "ready", 128)
    ]


async def test_reload_waits_for_the_old_one_where_memory_does_not_allow_both(rig):
    await rig.loaded(want("a", 6, pinned=True, origin=Origin.EXPLICIT), 6)
    load = asyncio.ensure_future(rig.pool.load(want("a", 6, context_length=64, origin=Origin.EXPLICIT), reload=True))
    await settle()
    await rig.finish_loads(6)
    await load
    assert len(rig.pool.rows()) == 1
    assert rig.pool.rows()[0].context_length == 64


async def test_preload_goes_on_after_a_failure(rig):
    names = []
    preload = asyncio.ensure_future(rig.pool.preload([A, C], lambda name, fraction: names.append((name, fraction))))
    await settle()
    rig.loading()[0].fail_load()
    await settle()
    rig.loading()[0].on_progress(0.5)
    await rig.finish_loads(1)
    failed = await preload
    assert list(failed) == ["a"]
    assert names == [("a", 0.0), ("c", 0.0), ("c", 0.5)]
    assert rig.states()["c"] == "ready"


async def test_stop_ends_what_runs_and_what_waits_with_an_error(rig):
    request, waiting = rig.request(A), rig.request(A)
    await settle()
    await rig.finish_loads(6)
    queued = rig.request(B)
    await settle()
    await rig.pool.stop()
    for each in (request, waiting, queued):
        with pytest.raises(Draining):
            await each
    assert rig.pool.rows() == []
    with pytest.raises(Draining):
        await rig.request(C)
    with pytest.raises(Draining):
        await rig.pool.load(C)


async def test_a_worker_is_given_a_limit_only_where_memory_is_short(rig):
    await rig.loaded(want("c", 4, pinned=True), 4)
    assert rig.of("c").request.free_memory == 0
    short = want("a", 4)
    heads = {"head_count": 256, "key_length": 128, "value_length": 128}  # 8 GiB of KV cache, if it may
    shape = {"block_count": 1, "context_length": 2**14} | {f"attention.{key}": n for key, n in heads.items()}
    short.model.header.values.update({f"llama.{key}": n for key, n in shape.items()})
    request = rig.request(short)
    await settle()
    asked = rig.loading()[0].request.free_memory
    assert asked == 6 * 2**30
    request.cancel()


async def test_leaving_the_lease_cancels_what_it_generates(rig):
    async def early():
        async with rig.pool.lease(C) as lease:
            lease.generate(SAY)
            assert await lease.tokenize([]) == []
            assert await lease.detokenize([97]) == "a"

    task = asyncio.ensure_future(early())
    await settle()
    await rig.finish_loads(1)
    await task
    assert rig.of("c").cancelled == [1]


async def test_subscribers_hear_of_every_state_and_a_slow_one_of_the_latest(rig):
    changes = rig.pool.subscribe()
    request = rig.request(C)
    await settle()
    assert (await anext(changes)).instance.state == "loading"
    await rig.finish_loads(1)
    await rig.answer(rig.of("c"))
    await request
    assert (await anext(changes)).instance.leases == 0
    await rig.advance(61)
    last = await anext(changes)
    assert last.gone
    assert last.instance.state == "dead"
    await changes.aclose()
    assert [change async for change in changes] == []


async def test_the_estimate_tells_what_there_is(rig):
    estimate = rig.pool.estimate(A)
    assert estimate.total == 6 * 2**30
    assert estimate.free == estimate.capacity == 10 * 2**30


async def test_a_request_in_the_very_moment_of_expiry_is_served():
    """A thousand requests, each aimed at the instant when the TTL ends: before, at and after it, in every order."""
    rig = await Rig(stops_at_once=False).start()
    wanted = want("a", ttl=10.0)
    served = fresh = 0
    for n in range(1000):
        before = len(rig.workers)
        offset = (n % 41 - 20) * 0.0001  # around the timer, which fires 1 ms late
        requests = []
        if n % 3 == 0:  # the timer is due in the same turn of the loop in which the request comes
            rig.clock.call_later(10.0 + offset, lambda found=requests: found.append(rig.request(wanted)))
            rig.clock.advance(10.01)
        else:
            rig.clock.advance(10.0 + offset)
            requests.append(rig.request(wanted))
            if n % 3 == 1:
                rig.clock.advance(0.01)
        await settle()
        for worker in rig.alive():
            if worker.ending:
                worker.let_stop()
        await rig.finish_loads(1)
        for worker in rig.alive():
            await rig.answer(worker)
        served += (await asyncio.wait_for(requests[0], 5)).endswith(": ok")
        fresh += len(rig.workers) > before
    assert served == 1000
    assert 200 < fresh < 800  # both ways were taken
    await stop(rig)
