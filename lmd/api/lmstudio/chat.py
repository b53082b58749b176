"""v1's chat: a conversation that the server keeps, answered whole or as named events."""

from __future__ import annotations

import uuid
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from lmd.api.abilities import abilities_of
from lmd.api.body import read_body
from lmd.api.data_url import image_of
from lmd.api.generate import Generation
from lmd.api.lmstudio.body import ChatBody, ImageInput
from lmd.api.lmstudio.events import Stream, Transcript
from lmd.api.middleware import json_body
from lmd.api.services import Services, services_of
from lmd.api.sse import stream_answer
from lmd.api.ttl import ttl_of
from lmd.api.unsupported import refuse_unsupported
from lmd.conversations import History, Response
from lmd.errors import InvalidRequest, NotFound, Unsupported
from lmd.generation import (
    ChatPrompt,
    GenerationRequest,
    Message,
    Part,
    Role,
    SamplingParams,
    TextPart,
)

if TYPE_CHECKING:
    from lmd.api.lmstudio.shapes import ChatResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A body: what to generate, and what becomes of it."""

    request: GenerationRequest
    new: Message
    """What this request adds to the conversation."""
    system_prompt: str | None
    parent: str | None
    store: bool
    stream: bool


def decode(said: ChatBody, history: History) -> Asked:
    """Pure. Unsupported and InvalidRequest for what cannot be served."""
    if said.integrations:
        raise Unsupported(
            "Integrations (plugins and MCP servers) are not implemented in this version of lmd.",
            hint="Leave 'integrations' out.",
            param="integrations",
        )
    system_prompt = history.system_prompt if said.system_prompt is None else said.system_prompt
    system = (Message(role=Role.SYSTEM, parts=(TextPart(system_prompt),)),) if system_prompt else ()
    new = Message(role=Role.USER, parts=_parts(said))
    request = GenerationRequest(
        model=said.model,
        prompt=ChatPrompt(messages=(*system, *history.messages, new), reasoning_effort=said.reasoning),
        sampling=SamplingParams(
            temperature=said.temperature,
            # 0 keeps the likeliest token alone, as any value below its probability does.
            top_p=None if said.top_p is None else max(said.top_p, 1e-9),
            top_k=said.top_k,
            min_p=said.min_p,
            repeat_penalty=said.repeat_penalty,
            max_tokens=None if said.max_output_tokens is None else min(said.max_output_tokens, 2**31 - 1),
        ),
        preset=said.preset,
        ttl=ttl_of(said.ttl),
        context_length=said.context_length,
    )
    refuse_unsupported(request)
    return Asked(
        request=request,
        new=new,
        system_prompt=system_prompt,
        parent=said.previous_response_id,
        store=said.store is not False,
        stream=bool(said.stream),
    )


def _parts(said: ChatBody) -> tuple[Part, ...]:
    if isinstance(said.input, str):
        return (TextPart(said.input),)
    parts: list[Part] = []
    for index, item in enumerate(said.input):
        if isinstance(item, ImageInput):
            parts.append(image_of(item.data_url, f"input.{index}.data_url"))
        else:
            # Templates put parts together without anything between them.
            after_text = bool(parts) and isinstance(parts[-1], TextPart)
            parts.append(TextPart(f"\n{item.content}" if after_text else item.content))
    return tuple(parts)


async def chat(request: web.Request) -> web.StreamResponse:
    services = services_of(request)
    said = read_body(ChatBody, await json_body(request))
    asked = decode(said, await _history(services, said.previous_response_id))
    generation = Generation(services, asked.request)
    await _check_reasoning(generation)
    transcript = Transcript(generation.served.wanted.id)
    if asked.stream:
        return await _stream(request, asked, generation, transcript)
    async with aclosing(generation.events()) as events:
        async for event in events:
            transcript.add(event)
    result = await _finish(services, asked, generation, transcript)
    return web.Response(body=msgspec.json.encode(result), content_type="application/json")


async def _history(services: Services, parent: str | None) -> History:
    if parent is None:
        return History(None, ())
    try:
        return await services.conversations.history(parent)
    except NotFound as error:
        raise NotFound(error.message, hint=error.hint, param="previous_response_id") from error


async def _check_reasoning(generation: Generation) -> None:
    """InvalidRequest where the model has no such setting. "off" is what a model without reasoning does anyway."""
    prompt = generation.request.prompt
    wanted = prompt.reasoning_effort if isinstance(prompt, ChatPrompt) else None
    if wanted is None:
        return
    target = generation.served.target
    switch = (await abilities_of(target.model, target.chat)).reasoning
    options = switch.options if switch is not None else ("off",)
    if wanted not in options:
        raise InvalidRequest(
            f"'{generation.model}' has no reasoning setting '{wanted}'.",
            hint=f"It has: {', '.join(options)}.",
            param="reasoning",
        )


async def _finish(services: Services, asked: Asked, generation: Generation, transcript: Transcript) -> ChatResult:
    """The whole answer, stored where it is to be."""
    result = transcript.result()
    if asked.store:
        id = f"resp_{uuid.uuid4().hex}"
        response = Response(
            id=id,
            parent=asked.parent,
            model=generation.model,
            system_prompt=asked.system_prompt,
            messages=(asked.new, transcript.message()),
        )
        if await services.conversations.add(response):
            result["response_id"] = id
    return result


async def _stream(
    request: web.Request, asked: Asked, generation: Generation, transcript: Transcript
) -> web.StreamResponse:
    told = Stream(transcript)

    async def finish() -> None:
        told.result = await _finish(services_of(request), asked, generation, transcript)

    return await stream_answer(request, told, generation.events, finish)
