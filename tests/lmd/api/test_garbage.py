"""A request, its body included, leaves memory with its answer.

What holds itself in a cycle stays until the garbage collector looks at its oldest objects, which is after tens of
thousands of new ones: hundreds of requests with megabytes each.
"""

import asyncio
import gc
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from lmd.errors import ContextLengthExceeded, LoadFailed
from lmd.generation import GenerationRequest
from lmd.worker.messages import Output

SAID = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hello"},
    "/v1/chat/completions": {"messages": SAID},
    "/v1/messages": {"messages": SAID, "max_tokens": 5},
    "/api/v1/chat": {"input": "Hello"},
}
IN_ONE_PIECE: dict[str, dict[str, Any]] = {
    "/v1/messages/count_tokens": {"messages": SAID},
    "/tokenize": {"content": "Hello"},
}
EVERY_DIALECT = pytest.mark.parametrize("path", BODIES)
WHOLE_OR_STREAMED = pytest.mark.parametrize("stream", [False, True])


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    logging.disable()  # pytest keeps records, and with them the errors that they tell of
    gc.collect()
    gc.freeze()  # what other tests have is not looked at
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()
    logging.disable(logging.NOTSET)


def ask(stack: Any, path: str, **more: Any) -> "asyncio.Task[Any]":
    body = {"model": "tiny", **(BODIES | IN_ONE_PIECE)[path], **more}
    return asyncio.create_task(stack.client.post(path, json=body, headers={"Connection": "close"}))


async def all_gone(stack: Any) -> None:
    await asyncio.wait_for(stack.services.activity.idle(), 5)
    for _ in range(100):  # rounds of the event loop in which the tasks that served it end
        await asyncio.sleep(0)
    held = [repr(one) for one in gc.get_objects() if isinstance(one, web.BaseRequest | GenerationRequest)]
    assert held == []


async def generating(stack: Any, n: int = 1) -> tuple[Any, list[int]]:
    worker = await stack.loading()
    worker.finish_load()
    return worker, await stack.generating(worker, n)


@EVERY_DIALECT
@WHOLE_OR_STREAMED
async def test_an_answered_request_leaves_nothing(stack: Any, path: str, stream: bool) -> None:
    answering = ask(stack, path, stream=stream)
    worker, (sequence,) = await generating(stack)
    worker.open[sequence].put(Output(sequence, "first", 1))
    worker.answer(sequence, "the end")
    assert b"the end" in await (await answering).read()
    await all_gone(stack)


@EVERY_DIALECT
async def test_a_wrong_body_leaves_nothing(stack: Any, path: str) -> None:
    assert (await ask(stack, path, temperature="hot")).status == 400
    await all_gone(stack)


@EVERY_DIALECT
async def test_an_unknown_model_leaves_nothing(stack: Any, path: str) -> None:
    assert (await ask(stack, path, model="none-such")).status == 404
    await all_gone(stack)


@pytest.mark.parametrize("path", IN_ONE_PIECE)
async def test_what_is_answered_or_refused_in_one_piece_leaves_nothing(stack: Any, path: str) -> None:
    asked = [ask(stack, path), ask(stack, path, model="none-such"), ask(stack, path, model=5)]
    (await stack.loading()).fail_load(LoadFailed("The file is no model."))
    assert [(await answering).status for answering in asked] == [500, 404, 400]
    del asked
    await all_gone(stack)


@EVERY_DIALECT
@WHOLE_OR_STREAMED
async def test_a_load_that_fails_leaves_nothing(stack: Any, path: str, stream: bool) -> None:
    answering = ask(stack, path, stream=stream)
    (await stack.loading()).fail_load(LoadFailed("The file is no model."))
    await (await answering).read()
    await all_gone(stack)


@EVERY_DIALECT
@WHOLE_OR_STREAMED
async def test_a_prompt_that_the_worker_refuses_leaves_nothing(stack: Any, path: str, stream: bool) -> None:
    answering = ask(stack, path, stream=stream)
    worker, (sequence,) = await generating(stack)
    worker.open.pop(sequence).fail(ContextLengthExceeded(5, 4))
    await (await answering).read()
    await all_gone(stack)


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_that_fails_midway_leaves_nothing(stack: Any, n: int) -> None:
    answering = ask(stack, "/v1/chat/completions", stream=True, n=n)
    worker, (sequence, *_) = await generating(stack, n)
    worker.open[sequence].put(Output(sequence, "first", 1))
    response = await answering
    worker.die()
    assert b"worker_died" in await response.read()
    await all_gone(stack)


@WHOLE_OR_STREAMED
async def test_several_choices_that_fail_leave_nothing(stack: Any, stream: bool) -> None:
    answering = ask(stack, "/v1/chat/completions", stream=stream, n=3)
    worker, _ = await generating(stack, 3)
    worker.die()
    assert (await answering).status == 500
    await all_gone(stack)


@EVERY_DIALECT
async def test_a_client_that_leaves_its_stream_leaves_nothing(stack: Any, path: str) -> None:
    answering = ask(stack, path, stream=True)
    worker, (sequence,) = await generating(stack)
    worker.open[sequence].put(Output(sequence, "first", 1))
    (await answering).close()
    del answering
    await all_gone(stack)


@EVERY_DIALECT
@WHOLE_OR_STREAMED
async def test_a_client_that_leaves_while_its_model_loads_leaves_nothing(stack: Any, path: str, stream: bool) -> None:
    answering = ask(stack, path, stream=stream)
    await stack.loading()
    answering.cancel()
    await all_gone(stack)


async def test_a_connection_that_stays_open_keeps_no_body(stack: Any) -> None:
    response = await stack.client.post("/v1/completions", json={"model": "none-such", "prompt": "unheard-of"})
    assert response.status == 404
    held = [repr(one) for one in gc.get_objects() if isinstance(one, web.BaseRequest) and one._read_bytes]
    assert held == []
