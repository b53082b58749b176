"""The Anthropic dialect's routes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

import msgspec
from aiohttp import web

from lmd.api.anthropic.body import CountBody, MessagesBody
from lmd.api.anthropic.decode import decode_count, decode_messages
from lmd.api.anthropic.encode import Answer
from lmd.api.anthropic.shapes import AnthropicError, AnthropicMessage, TokenCount
from lmd.api.generate import Generation, count_prompt
from lmd.api.middleware import json_body
from lmd.api.openapi import Operation
from lmd.api.services import services_of
from lmd.api.sse import stream_answer


def routes() -> Sequence[web.RouteDef]:
    return [web.post("/v1/messages", messages), web.post("/v1/messages/count_tokens", count_tokens)]


OPERATIONS = (
    Operation(
        method="POST", path="/v1/messages", summary="Answer a conversation",
        body=MessagesBody, answer=AnthropicMessage, error=AnthropicError, streams=True,
    ),
    Operation(
        method="POST", path="/v1/messages/count_tokens", summary="Count a conversation's tokens",
        body=CountBody, answer=TokenCount, error=AnthropicError,
    ),
)  # fmt: skip


async def messages(request: web.Request) -> web.StreamResponse:
    decoded = decode_messages(await json_body(request))
    generation = Generation(services_of(request), decoded.request)
    answer = Answer(generation.model, show_thinking=decoded.show_thinking)
    if decoded.stream:
        return await stream_answer(request, answer, generation.events)
    async with aclosing(generation.events()) as events:
        async for event in events:
            answer.feed(event)
    return web.Response(body=answer.whole(), content_type="application/json")


async def count_tokens(request: web.Request) -> web.Response:
    """Loads the model where it is not: only its own vocabulary and template tell."""
    counted = await count_prompt(services_of(request), decode_count(await json_body(request)))
    return web.Response(body=msgspec.json.encode({"input_tokens": counted}), content_type="application/json")
