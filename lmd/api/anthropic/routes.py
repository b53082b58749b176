"""The Anthropic dialect's routes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing

import msgspec
from aiohttp import web

from lmd.api.anthropic.body import CountBody, MessagesBody
from lmd.api.anthropic.decode import decode_count, decode_messages
from lmd.api.anthropic.encode import Answer
from lmd.api.anthropic.errors import error_event
from lmd.api.anthropic.shapes import AnthropicError, AnthropicMessage, TokenCount
from lmd.api.generate import Events, Generation, count_prompt
from lmd.api.middleware import json_body
from lmd.api.openapi import Operation
from lmd.api.services import services_of
from lmd.api.sse import EventStream, late_error
from lmd.generation import LoadProgress, PromptProgress


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
        return await _stream(request, answer, generation)
    async with aclosing(generation.events()) as events:
        async for event in events:
            answer.feed(event)
    return web.Response(body=answer.whole(), content_type="application/json")


async def count_tokens(request: web.Request) -> web.Response:
    """Loads the model where it is not: only its own vocabulary and template tell."""
    counted = await count_prompt(services_of(request), decode_count(await json_body(request)))
    return web.Response(body=msgspec.json.encode({"input_tokens": counted}), content_type="application/json")


async def _stream(request: web.Request, answer: Answer, generation: Generation) -> web.StreamResponse:
    async with (
        EventStream(request, services_of(request).keep_alive_seconds) as stream,
        aclosing(generation.events(stream.outlet(answer.feed))) as events,
    ):
        try:
            await _send_all(stream, answer, events)
        except Exception as raised:
            if not stream.started or isinstance(raised, ConnectionError):
                raise
            await stream.send(error_event(*late_error(raised)))
    return stream.response


async def _send_all(stream: EventStream, answer: Answer, events: Events) -> None:
    async for event in events:
        if isinstance(event, LoadProgress):
            stream.note(f"loading {event.instance}: {event.fraction:.0%}")
        elif isinstance(event, PromptProgress):
            stream.note(f"prompt: {event.done} of {event.total} tokens")
        if data := answer.feed(event):
            await stream.send(data)
    await stream.end(answer.closing())
