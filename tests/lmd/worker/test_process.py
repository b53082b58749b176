import asyncio
import gc
import logging
import os
import signal
import struct
import sys
import weakref
from contextlib import suppress
from pathlib import Path

import pytest

from lmd.errors import ContextLengthExceeded, InvalidRequest, LmdError, LoadFailed, ModelFileError, Unloaded, WorkerDied
from lmd.generation import FinishReason, SamplingParams
from lmd.loading import LoadParams
from lmd.worker.messages import Finished, Generate, Load, Output, Prefilled, PromptText
from lmd.worker.process import WorkerProcess

FAKE = (sys.executable, "-m", "lmd.worker.fake")


@pytest.fixture
async def spawn():
    workers = []

    async def spawned(path="/fake/model", **options):
        worker = await WorkerProcess.spawn(FAKE, **options)
        workers.append(worker)
        worker.name = "tiny"
        if path:
            await worker.load(Load(path, LoadParams()), lambda fraction: None, 30)
        return worker

    yield spawned
    for worker in workers:
        await worker.stop(0)
        assert not is_alive(worker.pid)


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def say(text):
    return Generate(0, [PromptText(text)], SamplingParams())


async def text_of(mailbox):
    return "".join([item.text async for item in mailbox if not isinstance(item, Prefilled)])


async def test_it_is_told_to_share_the_cores_before_what_it_is_asked_next(spawn):
    worker = await spawn()
    assert await text_of(worker.generate(say("cores"))) == "1"
    worker.share_cores(3)
    assert await text_of(worker.generate(say("cores"))) == "3"


async def test_loads_with_progress_and_answers(spawn):
    worker = await spawn(None)
    progress = []
    loaded = await worker.load(Load("/fake/model", LoadParams(parallel=2)), progress.append, 30)
    assert loaded.parallel == 2
    assert progress == [0.0, 0.5, 1.0]
    assert worker.facts.pid == worker.pid
    items = [item async for item in worker.generate(say("one two three"))]
    assert isinstance(items[0], Prefilled)
    assert "".join(item.text for item in items if isinstance(item, Output)) == "onetwothree"
    assert isinstance(items[-1], Finished)
    assert (await worker.tokenize([PromptText("ab")])).tokens == [97, 98]
    assert (await worker.tokenize([PromptText("ab")], pieces=True)).pieces == [b"a", b"b"]
    assert await worker.detokenize([97, 98]) == "ab"
    assert worker.stats is not None


async def test_vectors_and_scores_come_back_whole(spawn):
    worker = await spawn()
    embedded = await worker.embed([PromptText("one"), PromptText("two")])
    assert (embedded.width, embedded.n_tokens, struct.unpack("<4f", embedded.data)) == (2, 2, (1.0,) * 4)
    assert (await worker.rerank("query", ["a", "b", "c"])).data == struct.pack("<3f", 1, 1, 1)


async def test_leaving_a_call_early_cancels_it_in_the_worker(spawn, caplog):
    worker = await spawn()
    call = asyncio.ensure_future(worker.rerank("hang", ["a"]))
    await worker.embed([PromptText("b")])  # frames are answered in order: the other one has arrived
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await worker.embed([PromptText("c")])
    await worker.stop(30)
    assert "was cancelled" in caplog.text


async def test_many_streams_at_once_each_get_their_own(spawn):
    worker = await spawn()
    answers = await asyncio.gather(*(text_of(worker.generate(say(f"a{n} b{n} c{n}"))) for n in range(50)))
    assert answers == [f"a{n}b{n}c{n}" for n in range(50)]


async def test_closing_a_stream_cancels_the_sequence_and_leaves_the_others(spawn):
    worker = await spawn()
    endless = worker.generate(say("forever"))
    other = worker.generate(say("forever"))
    await anext(endless)
    await endless.aclose()
    assert [item async for item in endless] == []
    await anext(other)
    await other.aclose()
    # The child takes no new word into its mouth before it has told the ends of both.
    assert await text_of(worker.generate(say("still here"))) == "stillhere"
    assert worker._mailboxes == {}


async def test_errors_cross_the_boundary_as_themselves(spawn):
    worker = await spawn()
    with pytest.raises(ContextLengthExceeded) as too_long:
        await text_of(worker.generate(say("too-long")))
    assert (too_long.value.n_prompt, too_long.value.n_ctx) == (9, 8)
    with pytest.raises(InvalidRequest) as bad:
        await text_of(worker.generate(say("fail invalid_request")))
    assert bad.value.hint == "Do something else."
    with pytest.raises(LmdError):
        await text_of(worker.generate(say("fail code_of_tomorrow")))
    with pytest.raises(InvalidRequest) as no_tokens:
        await worker.tokenize([PromptText("bad")])
    assert no_tokens.value.param == "prompt"


async def test_what_asked_and_was_refused_leaves_memory_without_the_collector(spawn):
    class Asked:
        pass

    async def ask(worker, asked):
        with suppress(InvalidRequest):
            await worker.tokenize([PromptText("bad")])
        with suppress(InvalidRequest):
            await text_of(worker.generate(say("fail invalid_request")))

    worker = await spawn()
    gc.collect()
    gc.disable()
    try:
        asked = Asked()
        seen = weakref.ref(asked)
        await ask(worker, asked)
        del asked
        assert seen() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT"])
async def test_a_death_in_mid_stream_ends_everything_pending_with_the_signal(spawn, name, caplog):
    worker = await spawn()
    streams = [worker.generate(say("forever")), worker.generate(say(f"die {name}"))]
    call = asyncio.ensure_future(worker.tokenize([PromptText("never answered")]))
    for stream in streams:
        with pytest.raises(WorkerDied, match=f"'tiny' was killed by {name}"):
            await text_of(stream)
    with pytest.raises(WorkerDied):
        await call
    assert isinstance(await worker.gone, WorkerDied)
    assert "about to die" in caplog.text
    if name == "SIGABRT":
        assert "GGML_ASSERT(n > 0)" in worker.gone.result().message
    with pytest.raises(WorkerDied):
        await text_of(worker.generate(say("too late")))
    with pytest.raises(WorkerDied):
        await worker.tokenize([PromptText("too late")])


async def test_kill_9_from_outside_ends_the_stream_at_once(spawn):
    worker = await spawn()
    stream = worker.generate(say("forever"))
    await anext(stream)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerDied, match="SIGKILL"):
        await text_of(stream)


@pytest.mark.parametrize("lie", ["garbage", "huge", "unknown-id", "out-of-turn"])
async def test_a_worker_that_lies_is_ended_and_the_lie_is_told(spawn, lie):
    worker = await spawn()
    with pytest.raises(WorkerDied, match="and was ended"):
        await text_of(worker.generate(say(lie)))
    await worker.gone
    assert not is_alive(worker.pid)


async def test_a_worker_that_closes_its_socket_but_lives_on_is_ended(spawn):
    worker = await spawn()
    worker._patience = 0.01
    stream = worker.generate(say("close"))
    with pytest.raises(WorkerDied):
        await text_of(stream)
    await worker.gone
    assert not is_alive(worker.pid)


async def test_a_load_that_the_worker_refuses_gives_its_error(spawn):
    worker = await spawn(None)
    with pytest.raises(ModelFileError, match="no model"):
        await worker.load(Load("/fake/refuse", LoadParams()), lambda fraction: None, 30)
    await worker.gone


@pytest.mark.parametrize(
    ("path", "cause"),
    [("progress-then-die", "SIGKILL"), ("abort", "GGML_ASSERT"), ("exit", "unknown architecture 'x'")],
)
async def test_a_death_while_loading_fails_the_load_with_the_cause(spawn, path, cause):
    worker = await spawn(None)
    with pytest.raises(LoadFailed, match=cause):
        await worker.load(Load(f"/fake/{path}", LoadParams()), lambda fraction: None, 30)
    await worker.gone


async def test_a_load_that_hangs_is_ended_after_its_time(spawn):
    worker = await spawn(None)
    with pytest.raises(LoadFailed, match="load_timeout"):
        await worker.load(Load("/fake/hang", LoadParams()), lambda fraction: None, 0.05)
    await worker.gone
    assert not is_alive(worker.pid)


async def test_an_abandoned_load_ends_the_worker(spawn):
    worker = await spawn(None)
    load = asyncio.ensure_future(worker.load(Load("/fake/hang", LoadParams()), lambda fraction: None, 30))
    await asyncio.sleep(0)
    load.cancel()
    with pytest.raises(asyncio.CancelledError):
        await load
    await worker.gone


async def test_a_child_that_cannot_start_says_why(monkeypatch):
    monkeypatch.setenv("LMD_FAKE_HELLO", "exit")
    with pytest.raises(LoadFailed, match=r"exit status 3: cannot find libllama\.so"):
        await WorkerProcess.spawn(FAKE)


async def test_a_child_that_never_says_hello_is_ended(monkeypatch):
    monkeypatch.setenv("LMD_FAKE_HELLO", "never")
    with pytest.raises(LoadFailed, match="did not answer"):
        await WorkerProcess.spawn(FAKE, hello_timeout=0.05)


async def test_a_program_that_is_not_there_fails_the_load():
    with pytest.raises(LoadFailed, match="cannot be started"):
        await WorkerProcess.spawn(("/nonexistent/python",))


async def test_a_parked_worker_loads_the_same_again(spawn):
    worker = await spawn()
    assert await worker.park(30)
    await worker.load(Load("/fake/model", LoadParams()), lambda fraction: None, 30)
    assert await text_of(worker.generate(say("a b"))) == "ab"


async def test_a_worker_that_does_not_park_in_time_says_so(spawn):
    worker = await spawn("/fake/wont-park")
    assert not await worker.park(0.05)


async def test_a_worker_that_dies_while_it_parks_says_so(spawn):
    worker = await spawn("/fake/wont-park")
    parking = asyncio.ensure_future(worker.park(60))
    await asyncio.sleep(0)
    os.kill(worker.pid, signal.SIGKILL)
    assert not await parking
    await asyncio.shield(worker.gone)
    assert not await worker.park(60)


async def test_stop_lets_a_worker_end_by_itself(spawn):
    worker = await spawn()
    stream = worker.generate(say("forever"))
    await anext(stream)
    await worker.stop(30)
    assert worker._child.returncode == 0
    with pytest.raises(Unloaded):
        await text_of(stream)


async def test_stop_forces_a_worker_that_does_not_listen(spawn):
    worker = await spawn("/fake/stubborn")
    await worker.stop(0.01)
    assert worker._child.returncode == -signal.SIGKILL


async def test_kill_gives_its_reason_to_everything_pending(spawn):
    worker = await spawn()
    stream = worker.generate(say("sleep"))
    worker.kill(Unloaded("taken away"))
    with pytest.raises(Unloaded, match="taken away"):
        await text_of(stream)
    await worker.gone


async def test_a_worker_has_its_own_process_group_and_no_inherited_descriptors(spawn):
    with Path(os.devnull).open() as inherited:
        os.set_inheritable(inherited.fileno(), True)
        worker = await spawn()
        assert os.getpgid(worker.pid) == worker.pid
        opened = [str(fd.readlink()) for fd in Path(f"/proc/{worker.pid}/fd").iterdir()]
    assert sum(name.startswith("socket:") for name in opened) == 1
    assert opened.count(os.devnull) == 1  # standard input


async def test_what_it_prints_is_logged_with_the_instance(spawn, caplog):
    caplog.set_level(logging.INFO, "lmd.worker")
    worker = await spawn()
    with pytest.raises(WorkerDied):
        await text_of(worker.generate(say("die SIGKILL")))
    record = next(record for record in caplog.records if record.getMessage() == "about to die")
    assert record.fields["INSTANCE"] == "tiny"


async def test_nothing_is_left_of_many_workers(spawn):
    before = len(list(Path("/proc/self/fd").iterdir()))
    for path in ("/fake/model", "/fake/model"):
        worker = await spawn(path)
        await worker.stop(30)
    # Transports close their descriptors in a callback of the loop.
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before


async def test_a_finished_reason_is_whole(spawn):
    worker = await spawn()
    *_, end = [item async for item in worker.generate(say("x"))]
    assert end.reason is FinishReason.EOG
    assert end.usage.completion_tokens == 1
