"""What happens to a stream when the model, the worker or the client does the unexpected."""

import asyncio
import json
from typing import Any

import pytest

from lmd.api import middleware
from lmd.errors import LoadFailed
from lmd.generation import FinishReason, Usage
from lmd.worker.messages import Finished, Output, Prefilled

BODY = {"model": "tiny", "prompt": "Once", "stream": True}


def post(stack: Any, **more: Any) -> "asyncio.Task[Any]":
    return asyncio.create_task(stack.client.post("/v1/completions", json={**BODY, **more}))


async def started(stack: Any, **more: Any) -> tuple[Any, Any, int]:
    """An open stream that has its first token, its worker and its sequence."""
    answering = post(stack, **more)
    worker = await stack.loading()
    worker.finish_load()
    (sequence,) = await stack.generating(worker)
    worker.open[sequence].put(Output(sequence, "first", 1))
    response = await answering
    assert response.status == 200
    line = await response.content.readline()
    assert json.loads(line.removeprefix(b"data: "))["choices"][0]["text"] == "first"
    return response, worker, sequence


async def test_comments_keep_a_stream_alive_while_its_model_loads(stack: Any) -> None:
    stack.services.keep_alive_seconds = 0.01
    answering = post(stack)
    worker = await stack.loading()
    worker.on_progress(0.5)
    response = await answering  # the headers come before the model is there
    assert response.headers["Content-Type"].startswith("text/event-stream")
    while (line := await response.content.readline()) != b": loading tiny: 50%\n":
        assert line in {b": waiting\n", b"\n"} or line.startswith(b": ")
    worker.finish_load()
    (sequence,) = await stack.generating(worker)
    worker.open[sequence].put_prefilled(Prefilled(sequence, 512, 2048))
    while (line := await response.content.readline()) != b": prompt: 512 of 2048 tokens\n":
        assert line.startswith((b": ", b"\n"))
    worker.answer(sequence, "the end")
    rest = (await response.read()).decode()
    assert '"text":"the end"' in rest
    assert rest.endswith("data: [DONE]\n\n")


async def test_a_load_that_fails_early_is_a_plain_http_error(stack: Any) -> None:
    answering = post(stack)
    (await stack.loading()).fail_load(LoadFailed("The file is no model."))
    response = await answering
    assert response.status == 500
    assert (await response.json())["error"]["code"] == "load_failed"


async def test_a_load_that_fails_after_a_comment_is_an_event(stack: Any) -> None:
    stack.services.keep_alive_seconds = 0.01
    answering = post(stack)
    response = await answering
    assert response.status == 200
    (await stack.loading()).fail_load(LoadFailed("The file is no model."))
    *_, last, _, _ = (await response.read()).decode().split("\n")
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "load_failed"


async def test_a_worker_that_dies_in_the_middle_is_told_as_an_event(stack: Any) -> None:
    response, worker, _ = await started(stack)
    worker.die()
    rest = (await response.read()).decode().strip()
    said = json.loads(rest.removeprefix("data: "))
    assert said["error"]["code"] == "worker_died"
    assert "[DONE]" not in rest


async def test_a_worker_that_dies_before_the_first_token_is_a_plain_error(stack: Any) -> None:
    answering = post(stack)
    worker = await stack.loading()
    worker.finish_load()
    await stack.generating(worker)
    worker.die()
    response = await answering
    assert response.status == 500
    assert (await response.json())["error"]["code"] == "worker_died"


@pytest.mark.parametrize("n", [1, 3])
async def test_a_client_that_leaves_cancels_its_sequences(stack: Any, n: int) -> None:
    answering = post(stack, n=n)
    worker = await stack.loading()
    worker.finish_load()
    sequences = await stack.generating(worker, n)
    worker.open[sequences[0]].put(Output(sequences[0], "first", 1))
    response = await answering
    response.close()
    await asyncio.wait_for(stack.services.activity.idle(), 5)
    assert sorted(worker.cancelled) == sorted(sequences)
    assert stack.services.pool.active_leases == 0


async def test_a_client_that_leaves_with_the_last_event_in_hand_was_answered(
    stack: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: asyncio.Queue[int] = asyncio.Queue()
    monkeypatch.setattr(middleware, "_log_line", lambda record, status: ended.put_nowait(status))
    response, worker, sequence = await started(stack)
    worker.answer(sequence, "the end")
    while await response.content.readline() != b"data: [DONE]\n":
        pass
    response.close()
    assert await ended.get() == 200


async def test_a_client_that_leaves_while_its_model_loads_leaves_the_queue(stack: Any) -> None:
    answering = post(stack, stream=False)
    await stack.loading()
    answering.cancel()
    await asyncio.wait([answering])
    await asyncio.wait_for(stack.services.activity.idle(), 5)
    assert stack.services.pool.active_leases == 0


async def test_a_failing_choice_ends_the_others(stack: Any) -> None:
    answering = post(stack, n=2, stream=False)
    worker = await stack.loading()
    worker.finish_load()
    first, second = await stack.generating(worker, 2)
    worker.open.pop(first).fail(LoadFailed("no"))
    response = await answering
    assert response.status == 500
    assert worker.cancelled == [second]


async def test_choices_interleave_and_each_ends_with_its_reason(stack: Any) -> None:
    answering = post(stack, n=2, stop=["x"])
    worker = await stack.loading()
    worker.finish_load()
    first, second = await stack.generating(worker, 2)
    worker.open[second].put(Output(second, "b", 1))
    worker.open[first].put(Output(first, "a", 1))
    worker.open.pop(second).finish(Finished(second, FinishReason.LENGTH, Usage(completion_tokens=1)))
    worker.open.pop(first).finish(Finished(first, FinishReason.STOP, Usage(completion_tokens=1), "A", "x"))
    texts, reasons = {0: "", 1: ""}, {}
    async for line in (await answering).content:
        if line.startswith(b"data: {"):
            (choice,) = json.loads(line.removeprefix(b"data: "))["choices"]
            texts[choice["index"]] += choice["text"]
            reasons[choice["index"]] = choice["finish_reason"]
    assert texts == {0: "aA", 1: "b"}
    assert reasons == {0: "stop", 1: "length"}


async def test_a_slow_reader_holds_up_nobody_else(stack: Any) -> None:
    response, worker, slow = await started(stack)
    text = "~" * 10_000
    for _ in range(2000):  # 20 MB that the client does not read
        worker.open[slow].put(Output(slow, text, 1))
    answering = post(stack, stream=False)
    (other,) = set(await stack.generating(worker, 2)) - {slow}
    worker.answer(other, "quick")
    assert (await (await answering).json())["choices"][0]["text"] == "quick"
    worker.answer(slow)
    assert (await response.read()).count(b"~") == 20_000_000


async def test_pieces_stay_in_order_while_the_reader_stalls_and_goes_on(stack: Any) -> None:
    read = b""
    response, worker, sequence = await started(stack)
    told = [f" {number}" + "~" * 4000 for number in range(3000)]
    for number, text in enumerate(told):
        worker.open[sequence].put(Output(sequence, text, 1))
        if number % 100 == 0:
            await asyncio.sleep(0)  # for the stream's task to take what the socket did not
        if number == 2000:
            read = await response.content.readexactly(1_000_000)
    worker.answer(sequence, "end")
    read += await response.read()
    assert read.endswith(b"data: [DONE]\n\n")
    payloads = [line.removeprefix(b"data: ") for line in read.split(b"\n") if line.startswith(b"data: {")]
    assert "".join(json.loads(payload)["choices"][0]["text"] for payload in payloads) == "".join(told) + "end"


async def test_each_piece_goes_out_as_it_comes(stack: Any) -> None:
    response, worker, sequence = await started(stack)
    assert await response.content.readline() == b"\n"
    for text in ("a", "ä", "日"):
        worker.open[sequence].put(Output(sequence, text, 1))
        line = await response.content.readline()
        assert json.loads(line.removeprefix(b"data: "))["choices"][0]["text"] == text
        assert await response.content.readline() == b"\n"
    assert stack.services.metrics.pieces.family().samples[-2].value == 3  # as many gaps between four tokens
    worker.answer(sequence)
    assert (await response.read()).endswith(b"data: [DONE]\n\n")


async def test_a_client_of_http_1_0_gets_the_events_without_chunks_around_them(stack: Any) -> None:
    body = json.dumps(BODY).encode()
    reader, writer = await asyncio.open_connection(stack.client.host, stack.client.port)
    head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    worker = await stack.loading()
    worker.finish_load()
    (sequence,) = await stack.generating(worker)
    worker.open[sequence].put(Output(sequence, "first", 1))
    said = await reader.readuntil(b"\r\n\r\n")
    assert b"chunked" not in said
    assert b'"text":"first"' in await reader.readuntil(b"\n\n")
    worker.open[sequence].put(Output(sequence, "second", 1))
    assert (await reader.readuntil(b"\n\n")).startswith(b"data: {")
    worker.answer(sequence)
    assert (await reader.read()).endswith(b"\n\ndata: [DONE]\n\n")
    writer.close()


async def test_draining_refuses_and_waits(stack: Any) -> None:
    response, worker, sequence = await started(stack)
    stack.services.activity.drain()
    refused = await stack.client.post("/v1/completions", json=BODY)
    assert refused.status == 503
    assert int(refused.headers["Retry-After"]) >= 1
    assert (await stack.client.get("/health")).status == 503
    assert stack.services.activity.active == 1
    worker.answer(sequence)
    assert (await response.read()).endswith(b"data: [DONE]\n\n")
    await asyncio.wait_for(stack.services.activity.idle(), 5)


async def test_without_jit_a_model_must_be_loaded_first(stack: Any, tmp_path: Any) -> None:
    config = tmp_path / "lmd.toml"
    config.write_text(config.read_text() + "jit = false\n")
    await stack.services.config.reload()
    refused = await stack.client.post("/v1/completions", json=BODY)
    assert refused.status == 409
    assert "lmctl load tiny" in (await refused.json())["error"]["message"]
