"""The OpenAI dialect's routes."""

from datetime import UTC, datetime

import msgspec
from aiohttp import web

from lmd.api.completions.answer import respond
from lmd.api.completions.body import ChatBody, CompletionBody
from lmd.api.completions.decode import decode_chat, decode_completion
from lmd.api.completions.embeddings import Embeddings, EmbeddingsBody, respond_embeddings
from lmd.api.completions.shapes import ChatCompletion, Completion, ListedModel, ListedModels, OpenAIError
from lmd.api.openapi import Operation
from lmd.api.served import Listed, find_listed, listed
from lmd.api.services import services_of


def routes() -> list[web.RouteDef]:
    return [
        web.get("/v1/models", list_models),
        web.get("/v1/models/{id:.+}", get_model),
        web.post("/v1/chat/completions", chat_completions),
        web.post("/v1/completions", completions),
        web.post("/v1/embeddings", embeddings),
    ]


OPERATIONS = (
    Operation(
        method="GET", path="/v1/models", summary="List presets, models and named instances",
        answer=ListedModels, error=OpenAIError,
    ),
    Operation(
        method="GET", path="/v1/models/{id}", summary="One of them, by any name that requests may use",
        answer=ListedModel, error=OpenAIError, parameters={"id": "Name of a model, preset, alias or instance."},
    ),
    Operation(
        method="POST", path="/v1/chat/completions", summary="Answer a chat",
        body=ChatBody, answer=ChatCompletion, error=OpenAIError, streams=True,
    ),
    Operation(
        method="POST", path="/v1/completions", summary="Complete a prompt",
        body=CompletionBody, answer=Completion, error=OpenAIError, streams=True,
    ),
    Operation(
        method="POST", path="/v1/embeddings", summary="Turn texts into vectors",
        body=EmbeddingsBody, answer=Embeddings, error=OpenAIError,
    ),
)  # fmt: skip


async def list_models(request: web.Request) -> web.Response:
    data = [_model_object(one) for one in listed(services_of(request)).values()]
    return _json_response({"object": "list", "data": data})


async def get_model(request: web.Request) -> web.Response:
    """Any name that a request may use; the answer's id is the canonical one."""
    return _json_response(_model_object(find_listed(services_of(request), request.match_info["id"])))


def _model_object(one: Listed) -> ListedModel:
    described: ListedModel = {
        "id": one.name,
        "object": "model",
        "created": int(one.created),
        "owned_by": "lmd",
        # Anthropic's client lists models at the same path and reads these.
        "type": "model",
        "display_name": one.name,
        "created_at": datetime.fromtimestamp(one.created, UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    if one.template is not None:
        described["template"] = one.template
    return described


def _json_response(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def chat_completions(request: web.Request) -> web.StreamResponse:
    return await respond(request, decode_chat)


async def completions(request: web.Request) -> web.StreamResponse:
    return await respond(request, decode_completion)


async def embeddings(request: web.Request) -> web.StreamResponse:
    return await respond_embeddings(request)
