"""A chat or a completion answered from `Generation`'s events, whole or as a stream."""

from collections.abc import Callable, Sequence
from contextlib import aclosing
from functools import partial

from aiohttp import web

from lmd.api.completions.decode import Decoded
from lmd.api.completions.encode import Answer, Extras
from lmd.api.generate import Events, Generation, Outlet, merged
from lmd.api.middleware import json_body
from lmd.api.services import services_of
from lmd.api.sse import stream_answer
from lmd.generation import RawPrompt


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
        return await stream_answer(request, answer, partial(_events, generations))
    async with aclosing(_events(generations)) as events:
        async for event in events:
            answer.add(event)
    return web.Response(body=answer.whole(), content_type="application/json")


def _events(generations: Sequence[Generation], outlet: Outlet | None = None) -> Events:
    if len(generations) == 1:
        return generations[0].events(outlet)
    return merged([generation.events() for generation in generations])
