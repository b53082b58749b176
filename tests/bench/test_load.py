"""The load generator against a server of its own: what it sends, how it counts, and how it fails."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import load
from tests.bench.load import Load, percentile, run, run_clients, summarize
from tests.bench.stream import RequestFailed, Timeline, chat_body, new_connections, stream_chat


def _chunk(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def _text(text: str | None) -> bytes:
    return _chunk(choices=[{"index": 0, "delta": {"content": text}}])


def _usage(prompt: int, completion: int) -> bytes:
    return _chunk(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion})


@dataclass
class Scripted:
    """A server whose answers a test writes. ``script(body)`` gives the bytes of one stream."""

    script: Callable[[dict[str, Any]], list[bytes]]
    bodies: list[dict[str, Any]] = field(default_factory=list)
    connections: set[int] = field(default_factory=set)
    open: int = 0
    most_open: int = 0
    status: int = 200
    gate: asyncio.Barrier | None = None
    """Where set, no answer begins before so many requests are open at once."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        assert request.transport is not None
        self.connections.add(request.transport.get_extra_info("peername")[1])
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        if self.gate is not None and body["max_tokens"] != 8:
            await self.gate.wait()
        response = web.StreamResponse(status=self.status, headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.script(body):
            await response.write(piece)
        self.open -= 1
        return response


def whole_answer(body: dict[str, Any]) -> list[bytes]:
    words = sum(len(message["content"].split()) for message in body["messages"])
    texts = [_text(None), b": comment\n\n", *[_text("x")] * body["max_tokens"]]
    return [*texts, _usage(words + 9, body["max_tokens"]), b"data: [DONE]\n\n"]


@pytest.fixture
async def scripted() -> AsyncIterator[tuple[Scripted, str]]:
    server = Scripted(whole_answer)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.answer)
    async with TestServer(app) as running:
        yield server, str(running.make_url("")).rstrip("/")


async def test_every_request_is_streamed_greedy_unshared_and_on_its_own_connection(
    scripted: tuple[Scripted, str],
) -> None:
    server, url = scripted
    result = await run(url, "m", Load(clients=3, prompt_tokens=40, max_tokens=5, turns=2))
    warm_up, *bodies = server.bodies
    assert warm_up["max_tokens"] == 8
    assert len(bodies) == result.requests == 6
    assert len(server.connections) == 7
    for body in bodies:
        assert (body["model"], body["max_tokens"], body["stream"], body["ignore_eos"]) == ("m", 5, True, True)
        assert (body["temperature"], body["stream_options"]) == (0, {"include_usage": True})
    assert len({body["messages"][0]["content"] for body in bodies}) == 6


async def test_prompts_have_the_asked_length_whatever_the_template_adds(scripted: tuple[Scripted, str]) -> None:
    _, url = scripted
    result = await run(url, "m", Load(clients=2, prompt_tokens=40, max_tokens=5))
    assert result.prompt_tokens == 40
    assert result.completion_tokens == 2 * 3 * 5


async def test_all_clients_are_busy_at_once_and_no_more(scripted: tuple[Scripted, str]) -> None:
    server, url = scripted
    server.gate = asyncio.Barrier(4)
    await run(url, "m", Load(clients=4, prompt_tokens=20, max_tokens=2, turns=2))
    assert server.most_open == 4


async def test_equal_seeds_send_equal_prompts_and_others_do_not(scripted: tuple[Scripted, str]) -> None:
    server, url = scripted

    async def prompts(seed: str) -> list[str]:
        server.bodies.clear()
        await run(url, "m", Load(clients=1, prompt_tokens=30, max_tokens=1, turns=2, seed=seed))
        return [json.dumps(body["messages"]) for body in server.bodies[1:]]

    assert await prompts("a") == await prompts("a") != await prompts("b")


@pytest.mark.parametrize(
    ("pieces", "complaint"),
    [
        ([_text("a"), _chunk(error={"message": "worker died"})], "worker died"),
        ([_text("a"), _usage(1, 1)], r"\[DONE\] False"),
        ([_text("a"), b"data: [DONE]\n\n"], "usage None"),
        ([_usage(1, 1), b"data: [DONE]\n\n"], "0 pieces of text"),
    ],
)
async def test_a_stream_that_is_not_whole_fails_the_run(
    pieces: list[bytes], complaint: str, scripted: tuple[Scripted, str]
) -> None:
    server, url = scripted
    server.script = lambda body: pieces if body["max_tokens"] != 8 else whole_answer(body)
    with pytest.raises(RequestFailed, match=complaint):
        await run(url, "m", Load(clients=2, max_tokens=3))


async def test_where_no_usage_is_told_what_was_asked_for_or_came_is_counted(scripted: tuple[Scripted, str]) -> None:
    server, url = scripted
    body = chat_body("m", [{"role": "user", "content": "Hello"}], 3)

    def ending(reason: str) -> list[bytes]:
        last = _chunk(choices=[{"index": 0, "delta": {}, "finish_reason": reason}])
        return [_text("a"), _text("b"), last, b"data: [DONE]\n\n"]

    async with new_connections() as session:
        server.script = lambda body: ending("length")
        assert (await stream_chat(session, url, body, tells_usage=False)).completion_tokens == 3
        with pytest.raises(RequestFailed, match="usage None"):
            await stream_chat(session, url, body)
        server.script = lambda body: ending("stop")
        assert (await stream_chat(session, url, body, tells_usage=False)).completion_tokens == 2


async def test_a_refusal_tells_status_and_body(scripted: tuple[Scripted, str]) -> None:
    server, url = scripted
    server.status, server.script = 404, lambda body: [b'{"error": {"message": "no such model"}}']
    with pytest.raises(RequestFailed, match=r"404: .*no such model"):
        await run(url, "m", Load(clients=1))


def test_the_command_says_when_nobody_listens() -> None:
    with pytest.raises(SystemExit, match="load: the connection broke"):
        load.main(["http://127.0.0.1:9", "--model", "m"])


async def test_the_first_failure_ends_all_clients() -> None:
    ended = asyncio.Event()

    async def request(client: int, turn: int) -> Timeline:
        if client == 0:
            raise RequestFailed("first")
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    with pytest.raises(RequestFailed, match="first"):
        await run_clients(2, 1, request)
    assert ended.is_set()


def _timeline(sent: float, *pieces: float, tokens: int = 4) -> Timeline:
    return Timeline(
        sent=sent,
        pieces=pieces,
        ended=pieces[-1],
        prompt_tokens=10,
        cached_tokens=1,
        completion_tokens=tokens,
        text="x",
    )


def test_figures_of_a_run() -> None:
    result = summarize([_timeline(0, 1, 2, 4), _timeline(1, 1.5, 5)], clients=2)
    assert (result.seconds, result.tokens_per_second) == (5, 8 / 5)
    assert (result.ttft_p50, result.ttft_p99, result.ttft_max) == (0.5, 1, 1)
    assert (result.gap_p50, result.gap_p99, result.gap_max) == (2, 3.5, 3.5)
    assert (result.cached_tokens, result.completion_tokens, result.prompt_tokens) == (2, 8, 10)
    assert "timelines" not in result.as_json()


def test_one_piece_of_text_has_no_gap() -> None:
    assert summarize([_timeline(0, 1)], clients=1).gap_max == 0


@given(st.lists(st.floats(0, 1e6), min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed(values: list[float], percent: int) -> None:
    found = percentile(values, percent)

    def covered(limit: float) -> float:
        return sum(value <= limit for value in values) * 100

    assert found in values
    assert covered(found) >= percent * len(values)
    assert all(covered(value) < percent * len(values) for value in values if value < found)
