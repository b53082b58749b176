"""``GET /log``: what the models are told and answer, for those who watch and only for them."""

import asyncio
import logging
import threading
from typing import Any

import msgspec
import pytest

from lmd.api.watchers import MOST_WAITING, Watchers
from lmd.errors import Overloaded
from lmd.protocol import Answered, AnswerEnded, ControlEvent, Failure, LogLine, Prompted
from lmd.worker.messages import Output


async def event(response: Any) -> ControlEvent:
    async with asyncio.timeout(10):
        return msgspec.json.decode(await response.content.readline(), type=ControlEvent)


async def asked(stack: Any, route: str, body: dict[str, Any]) -> tuple["asyncio.Task[Any]", Any, list[int]]:
    """A request on its way in a worker: the task that waits for its answer, the worker, its sequences."""
    answering = asyncio.create_task(stack.client.post(route, json=body, headers={"X-Request-Id": "mine"}))
    if not stack.loaded:
        (await stack.loading()).finish_load()
    (worker,) = stack.loaded
    return answering, worker, await stack.generating(worker, body.get("n", 1))


async def test_the_prompt_and_every_piece_of_the_answer_are_told_as_they_come(stack: Any) -> None:
    watching = await stack.control.get("/log")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hello?"}]}
    answering, worker, (sequence,) = await asked(stack, "/v1/chat/completions", body)
    prompt = await event(watching)
    assert isinstance(prompt, Prompted)
    assert (prompt.model, prompt.instance, prompt.request, prompt.choice) == ("tiny", "tiny", "mine", 0)
    assert "Hello?" in prompt.text and "<|" in prompt.text  # the template's own words are in it
    worker.open[sequence].put(Output(sequence, "<think>", 1))
    assert await event(watching) == Answered(prompt.sequence, "<think>")  # before anything was made of it
    worker.answer(sequence, "Yes.")
    assert await event(watching) == Answered(prompt.sequence, "Yes.")
    ended = await event(watching)
    assert isinstance(ended, AnswerEnded)
    assert (ended.sequence, ended.reason, ended.completion_tokens) == (prompt.sequence, "eog", 1)
    assert (await answering).status == 200
    watching.close()


async def test_choices_and_token_prompts_are_told_each(stack: Any) -> None:
    watching = await stack.control.get("/log?source=model")
    answering, worker, sequences = await asked(stack, "/v1/completions", {"model": "tiny", "prompt": [1, 2], "n": 2})
    prompts = [await event(watching), await event(watching)]
    assert sorted(prompt.choice for prompt in prompts) == [0, 1]
    assert prompts[0].text == prompts[1].text == await worker.detokenize([1, 2])
    assert len({prompt.sequence for prompt in prompts}) == 2
    for sequence in sequences:
        worker.answer(sequence)
    await answering
    assert {(await event(watching)).reason for _ in sequences} == {"eog"}
    watching.close()


async def test_a_client_that_leaves_and_a_worker_that_dies_end_what_is_told(stack: Any) -> None:
    watching = await stack.control.get("/log")
    body = {"model": "tiny", "prompt": "x", "stream": True}
    answering, worker, (sequence,) = await asked(stack, "/v1/completions", body)
    worker.open[sequence].put(Output(sequence, "a", 1))
    (await answering).close()
    told = [await event(watching) for _ in range(3)]
    assert isinstance(told[-1], AnswerEnded) and told[-1].reason == "cancelled"
    answering, worker, _ = await asked(stack, "/v1/completions", body)
    worker.die()
    told = [await event(watching) for _ in range(2)]
    assert isinstance(told[-1], AnswerEnded) and told[-1].reason == "error"
    assert "SIGKILL" in (told[-1].error or "")
    await answering
    watching.close()


async def test_nothing_is_told_or_kept_where_nobody_watches(stack: Any) -> None:
    watchers = stack.services.watchers
    answering, worker, (sequence,) = await asked(stack, "/v1/completions", {"model": "tiny", "prompt": "x"})
    assert not watchers
    with watchers.watch_models() as watcher:
        assert watchers
        worker.answer(sequence, "began before the watch")
        await answering
    assert not watchers
    assert [event async for event in watcher] == []


async def test_a_slow_watcher_is_dropped_told_so_and_slows_nobody() -> None:
    watchers = Watchers()
    with watchers.watch_models() as slow, watchers.watch_models() as quick:
        piece = Answered(1, "x" * (MOST_WAITING // 4))
        for _ in range(5):
            watchers.tell(piece)
            assert await anext(quick) == piece
        with pytest.raises(Overloaded, match="too slowly"):
            await anext(slow)
        assert slow._waiting == type(slow._waiting)()  # what it had not read is not kept
        watchers.tell(piece)
        assert await anext(quick) == piece
        assert watchers
    assert not watchers


async def test_many_small_events_drop_a_watcher_too() -> None:
    watchers = Watchers()
    with watchers.watch_models() as slow:
        for _ in range(MOST_WAITING // 100):
            watchers.tell(Answered(1, ""))
        assert not watchers
        with pytest.raises(Overloaded):
            await anext(slow)


async def test_a_dropped_watchers_stream_ends_with_the_reason(stack: Any) -> None:
    watching = await stack.control.get("/log")
    stack.services.watchers.tell(Answered(1, "x" * (MOST_WAITING + 1)))
    failed = await event(watching)
    assert isinstance(failed, Failure) and "too slowly" in failed.message
    assert await watching.content.read() == b""


async def test_the_end_of_lmd_ends_a_watch(stack: Any) -> None:
    watching = [await stack.control.get(f"/log?source={source}") for source in ("model", "server")]
    stack.services.watchers.end()
    for response in watching:
        async with asyncio.timeout(10):
            await response.content.read()


async def test_the_servers_log_is_told_with_its_fields_from_any_thread(stack: Any) -> None:
    watching = await stack.control.get("/log?source=server")
    before = list(logging.getLogger().handlers)
    logger = logging.getLogger("lmd.pool.pump")
    said = threading.Thread(target=logger.warning, args=("%s is gone", "tiny"), kwargs={"extra": {"fields": {"A": 1}}})
    said.start()
    said.join()
    line = await event(watching)
    assert isinstance(line, LogLine)
    assert (line.level, line.logger, line.message, line.fields) == ("warning", "pool.pump", "tiny is gone", {"a": "1"})
    watching.close()
    async with asyncio.timeout(10):
        while logging.getLogger().handlers == before:
            await stack.control.get("/status")


async def test_an_unknown_source_is_refused(stack: Any) -> None:
    response = await stack.control.get("/log?source=everything")
    assert response.status == 400
    assert "model or server" in msgspec.json.decode(await response.read(), type=Failure).message
