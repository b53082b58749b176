"""The control socket's own routes, as `lmd.protocol` describes them."""

from __future__ import annotations

import asyncio
import os
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from pydantic import TypeAdapter, ValidationError

from lmd.api.rows import current_problems, missing_models, model_files, model_rows, preset_rows, problem_rows
from lmd.api.served import explicit_load
from lmd.api.services import SERVICES, Services, services_of
from lmd.api.status import error_code
from lmd.config.document import read_text
from lmd.config.store import Reloaded
from lmd.errors import ConfigError, InvalidRequest, LmdError, Overloaded
from lmd.loading import LoadParams
from lmd.pool.changes import Subscription
from lmd.pool.memory import probe
from lmd.pool.pool import LoadOutcome
from lmd.protocol import (
    Done,
    Failure,
    LoadBody,
    PresetDetail,
    PresetsChanged,
    Progress,
    ReloadResult,
    Status,
    UnloadBody,
)
from lmd.version import VERSION

NDJSON = "application/x-ndjson"
_EVENTS_KEPT = 256

_load_params = TypeAdapter(LoadParams)
_Body = TypeVar("_Body")


def routes() -> list[web.RouteDef]:
    return [
        web.get("/status", status),
        web.get("/models", models),
        web.get("/instances", instances),
        web.get("/presets", presets),
        web.post("/presets/check", check_presets),
        web.get("/presets/{name}", preset_detail),
        web.post("/reload", reload),
        web.post("/load", load),
        web.post("/unload", unload),
        web.get("/events", events),
        web.get("/log", follow_log),
    ]


def failure(error: LmdError) -> Failure:
    problems = problem_rows(error.problems) if isinstance(error, ConfigError) else []
    return Failure(error_code(error), error.message, error.hint, problems)


def error_body(error: LmdError, _status: int) -> bytes:
    return msgspec.json.encode(failure(error))


def json_answer(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def read_body(request: web.Request, kind: type[_Body]) -> _Body:
    """The body as a ``kind``; unlike clients' bodies, whatever its content type. Empty stands for ``{}``."""
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequest(f"The body is wrong: {error}.") from None


# ── what is there ─────────────────────────────────────────────────────────────────────────────


async def status(request: web.Request) -> web.Response:
    return json_answer(status_of(services_of(request)))


def status_of(services: Services) -> Status:
    snapshot = services.config.snapshot
    rows = services.pool.rows()
    facts = services.pool.facts
    memory = probe(())
    return Status(
        version=VERSION,
        pid=os.getpid(),
        started_at=services.started_at,
        state="draining" if services.activity.draining else "serving" if services.url else "starting",
        url=services.url,
        socket=services.socket,
        config_file=str(snapshot.file) if snapshot.file else None,
        models=len(services.catalog.models),
        presets=len(snapshot.presets),
        instances=len(rows),
        active_requests=services.activity.active,
        requests_served=services.activity.served,
        memory_total=memory.total,
        memory_free=memory.available,
        memory_used=services.pool.memory_used,
        problems=problem_rows(current_problems(services)),
        model_directories=[str(path) for path in services.catalog.directories],
        runtime={}
        if facts is None
        else {
            "llama_cpp_python": facts.llama_cpp_python,
            "llama_cpp": facts.llama_cpp,
            "system_info": facts.system_info,
            "devices": ", ".join(
                f"{device.name} ({device.description}, {device.memory_total // 2**20} MiB)"
                for device in facts.devices
                if device.kind in ("gpu", "igpu")
            ),
        },
    )


async def models(request: web.Request) -> web.Response:
    return json_answer(model_rows(services_of(request)))


async def instances(request: web.Request) -> web.Response:
    return json_answer(services_of(request).pool.rows())


async def presets(request: web.Request) -> web.Response:
    return json_answer(await preset_rows(services_of(request)))


async def preset_detail(request: web.Request) -> web.Response:
    services = services_of(request)
    name = request.match_info["name"]
    effective, origin = services.config.effective(name)
    snapshot = services.config.snapshot
    preset = snapshot.preset(name) or snapshot.bases.get(name)
    assert preset is not None  # `effective` has looked it up
    try:
        text = await asyncio.to_thread(read_text, preset.file)
    except ConfigError as error:  # it has become something else since it was read
        text = f"# {preset.file}: {error.problems[0].message}"
    detail = PresetDetail(preset.name, str(preset.file), text)
    if request.query.get("effective") not in {None, "", "0"}:
        detail.effective, detail.origin = effective, origin
    return json_answer(detail)


async def check_presets(request: web.Request) -> web.Response:
    services = services_of(request)
    problems = await asyncio.to_thread(services.config.check, model_files(services))
    spoiled = {problem.file for problem in problems}
    # What is served is what was read last, a moment ago where it has just been edited.
    missing = await asyncio.to_thread(missing_models, services.catalog, services.config.snapshot)
    return json_answer(problem_rows([*problems, *(one for one in missing if one.file not in spoiled)]))


# ── what changes something ────────────────────────────────────────────────────────────────────


async def reload(request: web.Request) -> web.Response:
    services = services_of(request)
    reloaded = await services.reload()
    return json_answer(ReloadResult([*reloaded.changed, *reloaded.settings], problem_rows(current_problems(services))))


async def unload(request: web.Request) -> web.Response:
    body = await read_body(request, UnloadBody)
    pool = services_of(request).pool
    if body.all == (body.id is not None):
        raise InvalidRequest("Say which instance to unload, or 'all': one of the two.")
    if body.id is None:
        return json_answer(await pool.unload_all(body.force))
    return json_answer([await pool.unload(body.id, body.force)])


async def load(request: web.Request) -> web.StreamResponse:
    """Loads and keeps loading when the caller leaves; its progress is told while it stays."""
    body = await read_body(request, LoadBody)
    services = services_of(request)
    services.activity.refuse_if_draining()
    wanted = explicit_load(
        services, body.model, load=_checked_load(body.load), ttl=body.ttl, identifier=body.identifier
    )
    if body.estimate_only:
        return json_answer(services.pool.estimate(wanted))
    stream = Lines(request)
    progress: asyncio.Queue[float | None] = asyncio.Queue()
    loading = asyncio.create_task(services.pool.load(wanted, progress.put_nowait, reload=body.reload))
    loading.add_done_callback(lambda _: progress.put_nowait(None))
    loading.add_done_callback(_retrieve)
    await stream.start()
    while (fraction := await progress.get()) is not None:
        if progress.empty():
            await stream.write(Progress(fraction))
    try:
        outcome: LoadOutcome = loading.result()
    except LmdError as error:
        await stream.write(failure(error))
    else:
        await stream.write(Done(outcome.instance, outcome.seconds, outcome.already))
    return await stream.end()


def _retrieve(loading: asyncio.Task[LoadOutcome]) -> None:
    """A load whose caller has left may fail without anybody to tell: the pool has logged it."""
    if not loading.cancelled():
        loading.exception()


def _checked_load(said: dict[str, object]) -> LoadParams:
    try:
        return _load_params.validate_python(said)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(step) for step in first["loc"] if not str(step).startswith("literal"))
        raise InvalidRequest(f"load.{key}: {first['msg']}.", param=f"load.{key}") from None


# ── what happens ──────────────────────────────────────────────────────────────────────────────


async def events(request: web.Request) -> web.StreamResponse:
    """Instance changes and reloads, until the client or the daemon ends it."""
    services = services_of(request)
    # Bounded: a reader that stops reading finds the latest row of each instance when it goes on.
    queue: asyncio.Queue[Any] = asyncio.Queue(_EVENTS_KEPT)

    def reloaded(result: Reloaded) -> None:
        if not queue.full():
            changed = [*result.changed, *result.settings]
            queue.put_nowait(PresetsChanged(changed, problem_rows(current_problems(services))))

    unsubscribe = services.config.subscribe(reloaded)
    changes = asyncio.create_task(_copy(services.pool.subscribe(), queue))
    stream = Lines(request)
    try:
        await stream.start()
        while (event := await queue.get()) is not None:
            await stream.write(event)
        return await stream.end()
    finally:
        unsubscribe()
        changes.cancel()
        await asyncio.gather(changes, return_exceptions=True)


async def follow_log(request: web.Request) -> web.StreamResponse:
    """What goes to the models and comes back, or the daemon's own log, until the client or the daemon ends it."""
    watchers = services_of(request).watchers
    sources = {"model": watchers.watch_models, "server": watchers.watch_server}
    watch = sources.get(request.query.get("source", "model"))
    if watch is None:
        raise InvalidRequest("source: expected model or server.", param="source")
    stream = Lines(request)
    with watch() as watcher:
        await stream.start()
        try:
            async for event in watcher:
                await stream.write(event)
        except Overloaded as error:
            await stream.write(failure(error))
        return await stream.end()


async def end_logs(app: web.Application) -> None:
    """A shutdown signal: lmd does not wait for those who watch it."""
    app[SERVICES].watchers.end()


async def _copy(source: Subscription, queue: asyncio.Queue[Any]) -> None:
    try:
        async with aclosing(source):
            async for event in source:
                await queue.put(event)
    finally:
        await queue.put(None)


class Lines:
    """An NDJSON answer."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={"Content-Type": NDJSON})

    async def start(self) -> None:
        await self._response.prepare(self._request)

    async def write(self, event: msgspec.Struct) -> None:
        await self._response.write(msgspec.json.encode(event) + b"\n")

    async def end(self) -> web.StreamResponse:
        await self._response.write_eof()
        return self._response
