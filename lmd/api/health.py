"""``GET /health``: 200 while new requests are taken, 503 while the daemon drains."""

from aiohttp import web

from lmd.api.services import services_of


def routes() -> list[web.RouteDef]:
    return [web.get("/health", health)]


async def health(request: web.Request) -> web.Response:
    if services_of(request).activity.draining:
        return web.json_response({"status": "draining"}, status=503, headers={"Retry-After": "5"})
    return web.json_response({"status": "ok"})
