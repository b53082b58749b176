"""The control socket's routes to stored conversations, as `lmd.protocol` describes them."""

from __future__ import annotations

from aiohttp import web

from lmd.api.control import json_answer, read_body
from lmd.api.services import services_of
from lmd.errors import InvalidRequest
from lmd.protocol import ChatRow, RemoveChatsBody


def routes() -> list[web.RouteDef]:
    return [web.get("/chats", rows), web.post("/chats/remove", remove)]


async def rows(request: web.Request) -> web.Response:
    found = await services_of(request).conversations.rows()
    return json_answer(
        [
            ChatRow(
                id=one.id,
                title=one.title,
                model=one.model,
                responses=one.responses,
                size=one.size,
                created_at=one.created_at,
                used_at=one.used_at,
            )
            for one in found
        ]
    )


async def remove(request: web.Request) -> web.Response:
    body = await read_body(request, RemoveChatsBody)
    conversations = services_of(request).conversations
    if body.all == bool(body.ids):
        raise InvalidRequest("Say which conversations to remove, or 'all': one of the two.")
    return json_answer(await (conversations.remove_all() if body.all else conversations.remove(body.ids)))
