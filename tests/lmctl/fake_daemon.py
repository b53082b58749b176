"""A daemon's control socket with nothing behind it: what the tests of lmctl talk to where a daemon would be in the way.

Answers are values of `lmd.protocol`, so what is told here is what the real one may tell. Set the attributes, then
run lmctl; ``requests`` has what came in.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from lmd.protocol import (
    ControlEvent,
    Done,
    Estimate,
    Failure,
    InstanceRow,
    LoadBody,
    ModelRow,
    PresetDetail,
    PresetRow,
    ProblemRow,
    Progress,
    ReloadResult,
    Status,
    UnloadBody,
)

TINY = InstanceRow(
    id="tiny-chat",
    model="tiny-chat",
    state="ready",
    pid=4711,
    context_length=8192,
    parallel=4,
    kv_cells=32768,
    memory=44 * 2**20,
    ttl=60.0,
    expires_in=42.0,
)


@dataclass
class FakeDaemon:
    socket: Path
    instances: list[InstanceRow] = field(default_factory=list)
    models: list[ModelRow] = field(default_factory=list)
    presets: list[PresetRow] = field(default_factory=list)
    details: dict[str, PresetDetail] = field(default_factory=dict)
    problems: list[ProblemRow] = field(default_factory=list)
    reloaded: ReloadResult = field(default_factory=lambda: ReloadResult(changed=[]))
    load_events: list[ControlEvent] = field(default_factory=lambda: [Progress(0.5), Done(instance=TINY, seconds=0.4)])
    estimate: Estimate = field(default_factory=lambda: Estimate(10, 20, 30, 0, 60, 50, 100, 200))
    failure: tuple[int, Any] | None = None
    """Answers everything."""
    pieces: list[dict[str, Any] | str | bytes] = field(default_factory=list)
    """A chat's answer: deltas, SSE lines as they are (str), raw bytes; after the last one ``[DONE]``."""
    hold: asyncio.Event | None = None
    """Held after the pieces, until it is set, with the stream open."""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """A client went away while its stream was open."""
    events: asyncio.Queue[ControlEvent | None] = field(default_factory=asyncio.Queue)
    """What /events tells; None closes it."""
    log_events: list[ControlEvent] = field(default_factory=list)
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def status(self) -> Status:
        return Status(
            version="0.1.0",
            pid=1234,
            started_at=0.0,
            state="serving",
            url="http://127.0.0.1:1234",
            socket=str(self.socket),
            config_file="/etc/lmd/lmd.toml",
            models=len(self.models),
            presets=len(self.presets),
            instances=len(self.instances),
            active_requests=1,
            requests_served=7,
            memory_total=16 * 2**30,
            memory_free=8 * 2**30,
            memory_used=44 * 2**20,
            problems=self.problems,
            runtime={"llama_cpp_python": "0.3.36"},
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeDaemon"]:
        app = web.Application(middlewares=[self._recorded])
        app.add_routes(
            [
                web.get("/status", self._telling(self.status)),
                web.get("/models", self._telling(lambda: self.models)),
                web.get("/instances", self._telling(lambda: self.instances)),
                web.get("/presets", self._telling(lambda: self.presets)),
                web.get("/presets/{name}", self._preset),
                web.post("/presets/check", self._telling(lambda: self.problems)),
                web.post("/reload", self._telling(lambda: self.reloaded)),
                web.post("/load", self._load),
                web.post("/unload", self._unload),
                web.get("/events", self._events),
                web.get("/log", self._log),
                web.post("/v1/chat/completions", self._chat),
            ]
        )
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        await web.UnixSite(runner, str(self.socket)).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    @web.middleware
    async def _recorded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        text = await request.text()
        self.requests.append((f"{request.method} {request.rel_url}", json.loads(text) if text else None))
        if self.failure is not None:
            return _json(self.failure[1], self.failure[0])
        try:
            return await handler(request)
        except (asyncio.CancelledError, ConnectionError):
            self.gone.set()
            raise

    def _telling(self, value: Callable[[], Any]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def tell(_: web.Request) -> web.Response:
            return _json(value())

        return tell

    async def _preset(self, request: web.Request) -> web.Response:
        detail = self.details.get(request.match_info["name"])
        if detail is None:
            return _json(Failure(code="not_found", message="No such preset.", hint="See 'lmctl preset ls'."), 404)
        return _json(detail)

    async def _load(self, request: web.Request) -> web.StreamResponse:
        if msgspec.json.decode(await request.read(), type=LoadBody).estimate_only:
            return _json(self.estimate)
        return await self._ndjson(request, self.load_events)

    async def _unload(self, request: web.Request) -> web.Response:
        body = msgspec.json.decode(await request.read(), type=UnloadBody)
        return _json([row.id for row in self.instances if body.all or row.id == body.id])

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        while (event := await self.events.get()) is not None:
            await response.write(msgspec.json.encode(event) + b"\n")
        return response

    async def _log(self, request: web.Request) -> web.StreamResponse:
        return await self._ndjson(request, self.log_events)

    async def _ndjson(self, request: web.Request, events: list[ControlEvent]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for event in events:
            await response.write(msgspec.json.encode(event) + b"\n")
        await self._wait()
        return response

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for piece in self.pieces:
            if isinstance(piece, dict):
                await response.write(_sse({"choices": [{"index": 0, "delta": piece, "finish_reason": None}]}))
            else:
                await response.write(piece if isinstance(piece, bytes) else piece.encode())
        await self._wait()
        for last in (
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}},
        ):
            await response.write(_sse(last))
        await response.write(b"data: [DONE]\n\n")
        return response

    async def _wait(self) -> None:
        if self.hold is not None:
            self.held.set()
            await self.hold.wait()


def _sse(data: Any) -> bytes:
    return f"data: {json.dumps(data)}\n\n".encode()


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), status=status, content_type="application/json")
