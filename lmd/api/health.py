"""``GET /health``: 200 while new requests are taken, 503 while the daemon drains."""

from typing import Literal

from aiohttp import web
from pydantic import ConfigDict, with_config
from typing_extensions import TypedDict

from lmd.api.completions.shapes import OpenAIError
from lmd.api.openapi import Operation
from lmd.api.services import services_of


def routes() -> list[web.RouteDef]:
    return [web.get("/health", health)]


@with_config(ConfigDict(extra="forbid"))
class Health(TypedDict):
    status: Literal["ok", "draining"]


OPERATIONS = (
    Operation(
        method="GET", path="/health", summary="Whether requests are taken: 503 while lmd stops",
        answer=Health, error=Health | OpenAIError,
    ),
)  # fmt: skip


async def health(request: web.Request) -> web.Response:
    if services_of(request).activity.draining:
        return web.json_response({"status": "draining"}, status=503, headers={"Retry-After": "5"})
    return web.json_response({"status": "ok"})
