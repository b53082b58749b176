"""The OpenAI dialect's routes. Each answers from `Generation`'s events, whole or as a stream."""

from collections.abc import Callable, Sequence
from contextlib import aclosing

import msgspec
from aiohttp import web

from lmd.api.generate import Events, Generation, merged
from lmd.api.middleware import json_body
from lmd.api.openai.decode import Decoded, decode_chat, decode_completion
from lmd.api.openai.encode import Answer
from lmd.api.openai.errors import error_event
from lmd.api.served import canonical_name, served_names
from lmd.api.services import services_of
from lmd.api.sse import EventStream, late_error
from lmd.generation import LoadProgress, PromptProgress, RawPrompt


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/models", list_models),
        web.get("/v1/models/{id:.+}", get_model),
        web.post("/v1/chat/completions", chat_completions),
        web.post("/v1/completions", completions),
    ]


async def list_models(request: web.Request) -> web.Response:
    names = served_names(services_of(request))
    data = [_model_object(name, created) for name, created in names.items()]
    return _json_response({"object": "list", "data": data})


async def get_model(request: web.Request) -> web.Response:
    """Any name that a request may use; the answer's id is the canonical one."""
    name, created = canonical_name(services_of(request), request.match_info["id"])
    return _json_response(_model_object(name, created))


def _model_object(name: str, created: float) -> dict[str, object]:
    return {"id": name, "object": "model", "created": int(created), "owned_by": "lmd"}


def _json_response(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, decode_chat)


async def completions(request: web.Request) -> web.StreamResponse:
    return await _answer(request, decode_completion)


async def _answer(request: web.Request, decode: Callable[[bytes], Decoded]) -> web.StreamResponse:
    decoded = decode(await json_body(request))
    first = decoded.requests[0]
    # One body may hold several prompts: their choices are numbered through.
    generations = [
        Generation(services_of(request), one, first_choice=index * one.n) for index, one in enumerate(decoded.requests)
    ]
    answer = Answer(
        chat=not isinstance(first.prompt, RawPrompt),
        model=generations[0].model,
        prompts=len(generations),
        n=first.n,
        logprobs=first.logprobs is not None,
        include_usage=decoded.include_usage,
    )
    if decoded.stream:
        return await _stream(request, answer, _events(generations))
    async with aclosing(_events(generations)) as events:
        async for event in events:
            answer.add(event)
    return web.Response(body=answer.whole(), content_type="application/json")


def _events(generations: Sequence[Generation]) -> Events:
    streams = [generation.events() for generation in generations]
    return streams[0] if len(streams) == 1 else merged(streams)


async def _stream(request: web.Request, answer: Answer, events: Events) -> web.StreamResponse:
    async with EventStream(request, services_of(request).keep_alive_seconds) as stream, aclosing(events):
        try:
            await _send_all(stream, answer, events)
        except Exception as raised:
            if not stream.started or isinstance(raised, ConnectionError):
                raise
            await stream.send(error_event(*late_error(raised)))
    return stream.response


async def _send_all(stream: EventStream, answer: Answer, events: Events) -> None:
    opening = answer.opening()
    async for event in events:
        if isinstance(event, LoadProgress):
            stream.note(f"loading {event.instance}: {event.fraction:.0%}")
        elif isinstance(event, PromptProgress):
            stream.note(f"prompt: {event.done} of {event.total} tokens")
        elif data := answer.chunk(event):
            await stream.send(opening + data)
            opening = b""
    await stream.send(opening + answer.closing())
