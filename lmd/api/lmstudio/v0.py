"""LM Studio's v0: OpenAI's bodies and answers, with models described and answers measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from lmd.api.completions.answer import respond
from lmd.api.completions.body import ChatBody, CompletionBody
from lmd.api.completions.decode import decode_chat, decode_completion
from lmd.api.completions.embeddings import Embeddings, EmbeddingsBody, respond_embeddings
from lmd.api.completions.encode import Extras
from lmd.api.completions.shapes import ChatCompletion, Completion, OpenAIError
from lmd.api.embed import Vectors
from lmd.api.generate import Generation
from lmd.api.lmstudio.models import v0_model, v0_models
from lmd.api.lmstudio.shapes import V0Model, V0Models
from lmd.api.openapi import Operation
from lmd.api.services import Services, services_of
from lmd.generation import FinishReason, Usage
from lmd.loading import PROMPT_LOOKUP

if TYPE_CHECKING:
    from lmd.api.served import Served
    from lmd.loading import LoadedModel

_STOP_REASONS: Mapping[FinishReason, str] = {
    FinishReason.EOG: "eosFound",
    FinishReason.STOP: "stopStringFound",
    FinishReason.LENGTH: "maxPredictedTokensReached",
    FinishReason.CONTEXT: "contextLengthReached",
    FinishReason.TOOL_CALLS: "toolCalls",
    FinishReason.CANCELLED: "userStopped",
}


def routes() -> Sequence[web.RouteDef]:
    return [
        web.get("/api/v0/models", list_models),
        web.get("/api/v0/models/{id:.+}", get_model),
        web.post("/api/v0/chat/completions", chat_completions),
        web.post("/api/v0/completions", completions),
        web.post("/api/v0/embeddings", embeddings),
    ]


_ID = {"id": "Name of a model, preset, alias or instance."}

OPERATIONS = (
    Operation(
        method="GET", path="/api/v0/models", summary="List models with their state and capabilities",
        answer=V0Models, error=OpenAIError,
    ),
    Operation(
        method="GET", path="/api/v0/models/{id}", summary="One of them", answer=V0Model, error=OpenAIError,
        parameters=_ID,
    ),
    Operation(
        method="POST", path="/api/v0/chat/completions", summary="Answer a chat, with statistics",
        body=ChatBody, answer=ChatCompletion, error=OpenAIError, streams=True,
    ),
    Operation(
        method="POST", path="/api/v0/completions", summary="Complete a prompt, with statistics",
        body=CompletionBody, answer=Completion, error=OpenAIError, streams=True,
    ),
    Operation(
        method="POST", path="/api/v0/embeddings", summary="Turn texts into vectors, with statistics",
        body=EmbeddingsBody, answer=Embeddings, error=OpenAIError,
    ),
)  # fmt: skip


async def list_models(request: web.Request) -> web.Response:
    return _json({"object": "list", "data": await v0_models(services_of(request))})


async def get_model(request: web.Request) -> web.Response:
    return _json(await v0_model(services_of(request), request.match_info["id"]))


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await respond(request, decode_chat, lambda generation: _extras(services_of(request), generation))


async def completions(request: web.Request) -> web.StreamResponse:
    return await respond(request, decode_completion, lambda generation: _extras(services_of(request), generation))


async def embeddings(request: web.Request) -> web.StreamResponse:
    services = services_of(request)

    def extras(vectors: Vectors) -> Mapping[str, Any]:
        return {"stats": vector_stats(vectors), **_machine(services, vectors.served, vectors.loaded)}

    return await respond_embeddings(request, extras)


def _extras(services: Services, generation: Generation) -> Extras:
    def extras(usage: Usage, reason: FinishReason) -> Mapping[str, Any]:
        draft = generation.served.wanted.draft
        looked_up = generation.request.draft_model == PROMPT_LOOKUP
        told = stats(usage, reason, PROMPT_LOOKUP if looked_up else draft.key if draft is not None else None)
        return {"stats": told, **_machine(services, generation.served, generation.loaded)}

    return extras


def _machine(services: Services, served: Served, loaded: LoadedModel | None) -> dict[str, Any]:
    header = served.target.model.header
    facts = services.pool.facts
    return {
        "model_info": {
            "arch": header.architecture,
            "quant": header.quantization,
            "format": "gguf",
            "context_length": loaded.context_length if loaded is not None else header.context_length,
        },
        "runtime": {
            "name": "llama.cpp",
            "version": facts.llama_cpp if facts is not None else "",
            "supported_formats": ["gguf"],
        },
    }


def vector_stats(vectors: Vectors) -> dict[str, Any]:
    """Of vectors, which come all at once: tokens are those of the texts, and there is nothing after the first."""
    return {
        "tokens_per_second": vectors.n_tokens / vectors.seconds if vectors.seconds > 0 else 0.0,
        "time_to_first_token": vectors.seconds,
        "generation_time": 0.0,
        "stop_reason": _STOP_REASONS[FinishReason.EOG],
    }


def stats(usage: Usage, reason: FinishReason, draft: str | None) -> dict[str, Any]:
    """Draft counters where something was drafted. Times do not include loading the model."""
    told: dict[str, Any] = {
        "tokens_per_second": usage.tokens_per_second,
        "time_to_first_token": usage.queue_seconds + usage.prompt_seconds,
        "generation_time": usage.generation_seconds,
        "stop_reason": _STOP_REASONS[reason],
    }
    if draft is not None:
        told["draft_model"] = draft
    if draft is not None or usage.drafted_tokens:
        told["total_draft_tokens_count"] = usage.drafted_tokens
        told["accepted_draft_tokens_count"] = usage.accepted_tokens
        told["rejected_draft_tokens_count"] = usage.rejected_draft_tokens
        told["ignored_draft_tokens_count"] = usage.ignored_draft_tokens
    return told
