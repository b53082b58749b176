"""The control socket's routes to the hub and to the downloads, as `lmd.protocol` describes them."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from aiohttp import web

from lmd.api.control import Lines, json_answer, read_body
from lmd.api.services import Services, services_of
from lmd.errors import InvalidRequest
from lmd.library.repository import Format, Repository, Variant, asked, nothing_to_fetch, proposed, variants
from lmd.protocol import DownloadChanged, GetBody, HubModel, HubVariant

if TYPE_CHECKING:
    from lmd.library.reference import Reference

MOST_RESULTS = 100


def routes() -> list[web.RouteDef]:
    return [
        web.get("/hub/search", search),
        web.get("/hub/model", hub_model),
        web.get("/downloads", rows),
        web.post("/downloads", start),
        web.get("/downloads/events", events),
        web.get("/downloads/{id}", row),
        web.post("/downloads/{id}/{verb:pause|resume|cancel}", steer),
        web.get("/downloads/{id}/events", events),
    ]


# ── the hub ───────────────────────────────────────────────────────────────────────────────────


async def search(request: web.Request) -> web.Response:
    words = request.query.get("q", "").strip()
    if not words:
        raise InvalidRequest("There is nothing to search for.", param="q")
    services = services_of(request)
    format = _format(request.query.get("format")) or "gguf"
    found = await services.downloads.hub.search(words, format, _count(request.query.get("n", "10")))
    models = [_hub_model(services, one, variants(one, format)) for one in found]
    return json_answer([model for model in models if model.variants])


async def hub_model(request: web.Request) -> web.Response:
    services = services_of(request)
    format = _format(request.query.get("format"))
    reference, repository, found = await services.downloads.plan(request.query.get("name", ""), format=format)
    if not found:
        raise nothing_to_fetch(repository.name)
    return json_answer(_hub_model(services, repository, found, reference))


def _hub_model(
    services: Services, repository: Repository, found: tuple[Variant, ...], reference: Reference | None = None
) -> HubModel:
    room = services.downloads.room()
    best = proposed(found, room)
    said = asked(found, reference) if reference else None
    return HubModel(
        name=repository.name,
        format=found[0].format if found else "",
        variants=[
            HubVariant(
                quantization=one.quantization,
                size=one.size,
                fits=room.fit(one.size),
                files=[file.path for file in one.files],
                on_disk=services.downloads.is_on_disk(repository, one),
            )
            for one in found
        ],
        proposed=best.quantization if best else "",
        chosen=said.quantization if said else "",
        downloads=repository.downloads,
        likes=repository.likes,
        gated=repository.gated,
        updated_at=repository.updated_at,
    )


def _format(said: str | None) -> Format | None:
    if not said:
        return None
    if said not in ("gguf", "mlx"):
        raise InvalidRequest(f"'{said[:40]}' is no format of models: expected gguf or mlx.", param="format")
    return "mlx" if said == "mlx" else "gguf"


def _count(said: str) -> int:
    if not (said.isascii() and said.isdecimal() and 1 <= int(said[:9]) <= MOST_RESULTS):
        raise InvalidRequest(f"'{said[:40]}' is no number from 1 to {MOST_RESULTS}.", param="n")
    return int(said)


# ── the downloads ─────────────────────────────────────────────────────────────────────────────


async def rows(request: web.Request) -> web.Response:
    return json_answer(services_of(request).downloads.rows())


async def row(request: web.Request) -> web.Response:
    return json_answer(services_of(request).downloads.find(request.match_info["id"]))


async def start(request: web.Request) -> web.Response:
    body = await read_body(request, GetBody)
    services = services_of(request)
    services.activity.refuse_if_draining()
    return json_answer(await services.downloads.start(body.model, body.quantization, _format(body.format)))


async def steer(request: web.Request) -> web.Response:
    downloads = services_of(request).downloads
    act = {"pause": downloads.pause, "resume": downloads.resume, "cancel": downloads.cancel}
    return json_answer(await act[request.match_info["verb"]](request.match_info["id"]))


async def events(request: web.Request) -> web.StreamResponse:
    """Of one download until it rests, or of all until the client or the daemon ends it."""
    downloads = services_of(request).downloads
    id = request.match_info.get("id")
    if id is not None:
        downloads.find(id)  # refused before the stream begins
    stream = Lines(request)
    await stream.start()
    async with aclosing(downloads.subscribe(id)) as changes:
        async for changed in changes:
            await stream.write(DownloadChanged(changed))
    return await stream.end()
