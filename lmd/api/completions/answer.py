"""A chat or a completion answered from `Generation`'s events, whole or as a stream."""

from collections.abc import Callable, Sequence
from contextlib import aclosing

from aiohttp import web

from lmd.api.completions.decode import Decoded
from lmd.api.completions.encode import Answer, Extras
from lmd.api.completions.errors import error_event
from lmd.api.generate import Events, Generation, Outlet, merged
from lmd.api.middleware import json_body
from lmd.api.services import services_of
from lmd.api.sse import EventStream, late_error
from lmd.generation import LoadProgress, PromptProgress, RawPrompt


async def respond(
    request: web.Request,
    decode: Callable[[bytes], Decoded],
    extras: Callable[[Generation], Extras] | None = None,
) -> web.StreamResponse:
    """Serve one body. ``extras``: what the answer (the stream's last chunk) says beyond OpenAI's own fields."""
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
        extras=extras(generations[0]) if extras is not None else None,
    )
    if decoded.stream:
        return await _stream(request, answer, generations)
    async with aclosing(_events(generations)) as events:
        async for event in events:
            answer.add(event)
    return web.Response(body=answer.whole(), content_type="application/json")


def _events(generations: Sequence[Generation], outlet: Outlet | None = None) -> Events:
    if len(generations) == 1:
        return generations[0].events(outlet)
    return merged([generation.events() for generation in generations])


async def _stream(request: web.Request, answer: Answer, generations: Sequence[Generation]) -> web.StreamResponse:
    async with (
        EventStream(request, services_of(request).keep_alive_seconds) as stream,
        aclosing(_events(generations, stream.outlet(answer.chunk))) as events,
    ):
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
    await stream.end(opening + answer.closing())
