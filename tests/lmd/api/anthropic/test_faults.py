"""What Anthropic's dialect tells when the worker does the unexpected, and how pieces become blocks."""

import asyncio
import json
from typing import Any

from lmd.generation import FinishReason, Usage
from lmd.worker.messages import Finished, Output
from tests.lmd.api.wire import events

BODY = {"model": "tiny", "max_tokens": 10, "messages": [{"role": "user", "content": "Once"}], "stream": True}


async def generating(stack: Any, **more: Any) -> tuple[Any, Any, int]:
    answering = asyncio.create_task(stack.client.post("/v1/messages", json={**BODY, **more}))
    worker = await stack.loading()
    worker.finish_load()
    (sequence,) = await stack.generating(worker)
    return answering, worker, sequence


async def test_a_worker_that_dies_early_is_a_plain_error(stack: Any) -> None:
    answering, worker, _ = await generating(stack)
    worker.die()
    response = await answering
    assert response.status == 500
    said = await response.json()
    assert (said["type"], said["error"]["type"]) == ("error", "api_error")
    assert said["request_id"] == response.headers["X-Request-Id"]


async def test_a_worker_that_dies_later_is_an_error_event_and_the_last(stack: Any) -> None:
    answering, worker, sequence = await generating(stack)
    worker.open[sequence].put(Output(sequence, "Once upon", 2))
    response = await answering
    while b"text_delta" not in await response.content.readline():
        pass
    worker.die()
    found = events((await response.text()).removeprefix("\n"))
    assert [name for name, _ in found] == ["error"]
    assert found[0][1]["error"]["type"] == "api_error"


async def test_a_context_that_is_full_has_its_own_reason(stack: Any) -> None:
    answering, worker, sequence = await generating(stack, stream=False)
    worker.open[sequence].put(Output(sequence, "Once", 1))
    worker.open.pop(sequence).finish(Finished(sequence, FinishReason.CONTEXT, Usage(prompt_tokens=9, cached_tokens=4)))
    said = json.loads(await (await answering).text())
    assert said["stop_reason"] == "model_context_window_exceeded"
    assert said["usage"] == {
        "input_tokens": 5,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 4,
        "output_tokens": 0,
    }


async def test_an_answer_of_nothing_still_begins_and_ends(stack: Any) -> None:
    answering, worker, sequence = await generating(stack)
    worker.open.pop(sequence).finish(Finished(sequence, FinishReason.EOG, Usage()))
    found = events(await (await answering).text())
    assert [name for name, _ in found] == ["message_start", "ping", "message_delta", "message_stop"]


async def test_draining_is_told_as_overloaded(stack: Any) -> None:
    stack.services.activity.drain()
    response = await stack.client.post("/v1/messages", json=BODY)
    assert response.status == 503
    assert (await response.json())["error"]["type"] == "overloaded_error"
