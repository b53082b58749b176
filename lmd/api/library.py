"""The control socket's routes to single models: what one is, and removing one."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from aiohttp import web

from lmd.api.abilities import abilities_of
from lmd.api.control import json_answer, read_body
from lmd.api.rows import model_rows
from lmd.api.served import wanted_of
from lmd.api.services import Services, services_of
from lmd.config.preset import ChatSettings
from lmd.errors import Conflict, UnusableModel
from lmd.library.removal import plan_broken_removal, plan_removal, remove_files
from lmd.pool.memory import DEFAULT_PARALLEL
from lmd.protocol import MemoryRow, ModelDetail, RemoveBody, Removed

if TYPE_CHECKING:
    from lmd.library.catalog import Model

CONTEXTS = (4096, 16384, 32768, 65536, 131072, 262144)
"""Tokens: what the memory is told for, up to the length that the model was trained for."""
_MOST_TEXT = 2000
"""Characters of a metadata text."""


def routes() -> list[web.RouteDef]:
    return [web.post("/models/remove", remove), web.get("/models/{key:.+}", detail)]


async def detail(request: web.Request) -> web.Response:
    services = services_of(request)
    model = services.catalog.find(request.match_info["key"])
    row = next(row for row in model_rows(services) if row.key == model.key)
    values = {
        key: value[:_MOST_TEXT] if isinstance(value, str) else value
        for key, value in model.header.values.items()
        if not key.startswith("tokenizer.chat_template")
    }
    lengths = {key: f"{n} elements" for key, n in model.header.lengths.items() if key not in values}
    return json_answer(
        ModelDetail(
            model=row,
            files=[str(path) for path in (*model.parts, *([model.mmproj] if model.mmproj else []))],
            capabilities=await _capabilities(model),
            header=dict(sorted((values | lengths).items())),
            template=model.header.chat_template or None,
            memory=_memory(services, model),
        )
    )


async def _capabilities(model: Model) -> list[str]:
    if model.type == "embeddings":
        return ["embeddings"]
    found = await abilities_of(model, ChatSettings())
    told = {
        "chat": bool(model.header.chat_template),
        "tool_use": found.tool_use,
        "reasoning": found.reasoning is not None,
        "vision": model.type == "vlm",
    }
    return [name for name, has in told.items() if has]


def _memory(services: Services, model: Model) -> list[MemoryRow]:
    """What serving is expected to take with the defaults, at several context lengths."""
    if model.format != "gguf":
        return []
    wanted = wanted_of(services, model.key)
    trained = model.context_length or CONTEXTS[0]
    lengths = sorted({*(n for n in CONTEXTS if n < trained), min(trained, CONTEXTS[-1])})
    rows = []
    for length in lengths:
        estimate = services.pool.estimate(replace(wanted, load=replace(wanted.load, context_length=length)))
        fits = "yes" if estimate.total <= estimate.free else "unloading"
        rows.append(
            MemoryRow(
                context_length=length,
                parallel=wanted.load.parallel or DEFAULT_PARALLEL,
                total=estimate.total,
                fits=fits if estimate.total <= estimate.capacity else "no",
            )
        )
    return rows


async def remove(request: web.Request) -> web.Response:
    """With ``dry_run``: what would go. Conflict while it is loaded, unless by force. Broken files go by their names."""
    body = await read_body(request, RemoveBody)
    services = services_of(request)
    try:
        model = services.catalog.find(body.model)
    except UnusableModel:
        if (broken := services.catalog.find_broken(body.model)) is None:
            raise
        key, loaded = broken.path.name, []
        removal = await asyncio.to_thread(plan_broken_removal, broken)
    else:
        others = [other for other in services.catalog.models.values() if other.key != model.key]
        key, loaded = model.key, _instances_of(services, model)
        removal = await asyncio.to_thread(plan_removal, model, others)
    answer = Removed(
        model=key,
        files=[str(path) for path in removal.files],
        freed=removal.size,
        kept=[str(path) for path in removal.kept],
        loaded=loaded,
    )
    if body.dry_run:
        return json_answer(answer)
    if answer.loaded and not body.force:
        raise Conflict(
            f"{key} is in memory as {', '.join(answer.loaded)}.",
            hint="Unload it first ('lmctl unload'), or say --force.",
        )
    for id in answer.loaded:
        await services.pool.unload(id, force=True)
    services.pool.drop_parked()  # a mapped file's blocks stay on disk
    await asyncio.to_thread(remove_files, removal, services.catalog.directories)
    await services.catalog.update()
    return json_answer(answer)


def _instances_of(services: Services, model: Model) -> list[str]:
    """Instances that use it, as their model or as the draft model beside it."""
    using = []
    for row in services.pool.rows():
        found = services.pool.find(row.id)
        if row.model == model.key or (found is not None and found.draft is not None and found.draft.key == model.key):
            using.append(row.id)
    return using
