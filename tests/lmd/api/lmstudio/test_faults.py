"""What v1's chat tells when the model, the worker or the client does the unexpected; and who may manage models."""

import asyncio
import json
from typing import Any

import pytest

from lmd.errors import LoadFailed
from lmd.generation import FinishReason, Usage
from lmd.worker.messages import Finished, Output, Prefilled
from tests.lmd.api.wire import events

BODY = {"model": "tiny", "input": "Once", "stream": True}


def post(stack: Any, **more: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(stack.client.post("/api/v1/chat", json={**BODY, **more}))


async def generating(stack: Any, **more: Any) -> tuple[Any, Any, int]:
    """An open request, its worker and its sequence."""
    answering = post(stack, **more)
    worker = await stack.loading()
    worker.finish_load()
    (sequence,) = await stack.generating(worker)
    return answering, worker, sequence


async def read(answering: Any) -> list[tuple[str, Any]]:
    response = await answering
    assert response.status == 200
    return events(await response.text())


async def until(response: Any, name: str) -> Any:
    """The data of the next event of that name."""
    while await response.content.readline() != f"event: {name}\n".encode():
        pass
    return json.loads((await response.content.readline()).removeprefix(b"data: "))


async def test_progress_of_load_and_prompt_is_told_as_it_happens(stack: Any) -> None:
    answering = post(stack)
    worker = await stack.loading()
    worker.on_progress(0.25)
    response = await answering
    assert (await until(response, "model_load.progress"))["progress"] == 0.25  # it is there before the model is
    worker.finish_load()
    (sequence,) = await stack.generating(worker)
    worker.open[sequence].put_prefilled(Prefilled(sequence, 512, 2048))
    assert (await until(response, "prompt_processing.progress"))["progress"] == 0.25
    worker.open[sequence].put_prefilled(Prefilled(sequence, 2048, 2048))
    assert (await until(response, "prompt_processing.progress"))["progress"] == 1
    worker.answer(sequence, "the end")
    assert (await until(response, "message.delta"))["content"] == "the end"


async def test_a_load_that_fails_at_once_is_a_plain_error(stack: Any) -> None:
    answering = post(stack)
    (await stack.loading()).fail_load(LoadFailed("The file is no model."))
    response = await answering
    assert response.status == 500
    assert (await response.json())["error"] == {
        "type": "internal_error",
        "message": "The file is no model.",
        "code": "load_failed",
    }


async def test_a_load_that_fails_after_it_was_told_of_is_an_event_and_chat_end_follows(stack: Any) -> None:
    answering = post(stack)
    worker = await stack.loading()
    worker.on_progress(0.5)
    response = await answering
    worker.fail_load(LoadFailed("The file is no model."))
    found = events(await response.text())
    assert [name for name, _ in found] == [
        "chat.start", "model_load.start", "model_load.progress", "error", "chat.end",
    ]  # fmt: skip
    assert found[3][1]["error"]["code"] == "load_failed"
    assert found[4][1]["result"]["output"] == []


async def test_after_an_error_chat_end_has_what_was_generated_and_nothing_is_stored(stack: Any) -> None:
    answering, worker, sequence = await generating(stack)
    worker.open[sequence].put(Output(sequence, "Once upon", 2))
    response = await answering
    while b"message.delta" not in await response.content.readline():
        pass
    worker.die()
    rest = await response.text()
    found = events(rest.split("\n\n", 1)[1])
    assert [name for name, _ in found] == ["message.end", "error", "chat.end"]
    assert found[1][1]["error"]["type"] == "internal_error"
    result = found[2][1]["result"]
    assert result["output"] == [{"type": "message", "content": "Once upon"}]
    assert "response_id" not in result
    assert await stack.services.conversations.rows() == []


async def test_a_client_that_leaves_stores_nothing_and_gives_the_model_back(stack: Any) -> None:
    answering, worker, sequence = await generating(stack)
    worker.open[sequence].put(Output(sequence, "first", 1))
    response = await answering
    response.close()
    await asyncio.wait_for(stack.services.activity.idle(), 5)
    assert worker.cancelled == [sequence]
    assert await stack.services.conversations.rows() == []


async def test_an_answer_of_nothing_is_an_answer(stack: Any) -> None:
    answering, worker, sequence = await generating(stack)
    worker.open.pop(sequence).finish(Finished(sequence, FinishReason.EOG, Usage(prompt_tokens=3, completion_tokens=1)))
    found = await read(answering)
    assert [name for name, _ in found][-3:] == ["prompt_processing.start", "prompt_processing.end", "chat.end"]
    assert found[-1][1]["result"]["output"] == []


async def test_a_conversation_that_cannot_be_stored_is_told_and_not_lost(stack: Any, tmp_path: Any) -> None:
    (tmp_path / "conversations.db").write_bytes(b"no database" * 100)
    answering, worker, sequence = await generating(stack)
    worker.answer(sequence, "the end")
    found = await read(answering)
    assert [name for name, _ in found][-2:] == ["error", "chat.end"]
    assert "moved away" in found[-2][1]["error"]["message"]
    assert found[-1][1]["result"]["output"] == [{"type": "message", "content": "the end"}]


# ── who may manage ──

MANAGED = [
    ("/api/v1/models/load", {"model": "tiny"}),
    ("/api/v1/models/unload", {"instance_id": "tiny"}),
    ("/api/v1/models/download", {"model": "owner/repo"}),
]


async def managed(client: Any, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    response = await client.post(path, json=body, headers=headers)
    return response.status, await response.json()


@pytest.mark.parametrize(("path", "body"), MANAGED)
@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded"])
async def test_what_a_proxy_passes_on_is_from_afar(stack: Any, path: str, body: Any, header: str) -> None:
    status, said = await managed(stack.client, path, body, **{header: "203.0.113.9"})
    assert (status, said["error"]["code"]) == (403, "forbidden")
    assert "management" in said["error"]["message"]


@pytest.mark.parametrize(("path", "body"), MANAGED)
async def test_management_can_be_switched_off_but_not_for_the_operator(
    stack: Any, tmp_path: Any, path: str, body: Any
) -> None:
    config = tmp_path / "lmd.toml"
    config.write_text(config.read_text() + "[server]\nmanagement = false\n")
    await stack.services.config.reload()
    status, said = await managed(stack.client, path, body)
    assert (status, said["error"]["code"]) == (403, "forbidden")


async def test_unloading_waits_for_no_request_and_ends_none(stack: Any) -> None:
    answering, worker, sequence = await generating(stack)
    status, said = await managed(stack.client, "/api/v1/models/unload", {"instance_id": "tiny"})
    assert (status, said["error"]["type"]) == (409, "invalid_request")
    worker.answer(sequence, "the end")
    assert (await read(answering))[-1][1]["result"]["output"][0]["content"] == "the end"
    assert await managed(stack.client, "/api/v1/models/unload", {"instance_id": "tiny"}) == (
        200, {"instance_id": "tiny"},
    )  # fmt: skip
