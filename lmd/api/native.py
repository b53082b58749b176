"""What llama-server has beside OpenAI's routes: reranking, tokens and templates.

Shapes are those of its README (tools/server in llama.cpp's repository). As lmd serves several models, a body may
name its ``model``; one that does not means the only model in memory, or else the only one there is.
"""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

import msgspec
from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from lmd.api.body import Body, read_body
from lmd.api.completions.body import ChatBody, TokenIds
from lmd.api.completions.decode import decode_chat
from lmd.api.completions.shapes import OpenAIError
from lmd.api.embed import rerank
from lmd.api.holding import holding, served_by
from lmd.api.limits import refuse_long_texts
from lmd.api.middleware import json_body
from lmd.api.openapi import Operation
from lmd.api.prompt import render
from lmd.api.served import only_name
from lmd.api.services import services_of
from lmd.api.ttl import ttl_of
from lmd.errors import InvalidRequest
from lmd.generation import ChatPrompt
from lmd.worker.messages import PromptText

MAX_DOCUMENTS = 2048

ModelName = Annotated[str, Field(min_length=1, max_length=1024)]


def routes() -> list[web.RouteDef]:
    return [
        *(web.post(path, rerank_documents) for path in ("/v1/rerank", "/v1/reranking", "/rerank", "/reranking")),
        web.post("/tokenize", tokenize),
        web.post("/detokenize", detokenize),
        web.post("/apply-template", apply_template),
    ]


class Reranked(TypedDict):
    index: int
    """Of the document."""
    relevance_score: float
    document: NotRequired[dict[str, str]]
    """Its text, where it was asked for."""


class RerankUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class Ranking(TypedDict):
    """Best first."""

    object: str
    model: str
    results: list[Reranked]
    usage: RerankUsage


class Ranked(TypedDict):
    """As Text Embeddings Inference says it."""

    index: int
    score: float
    text: NotRequired[str]


class Piece(TypedDict):
    id: int
    piece: str | list[int]
    """Its bytes, where they are no text by themselves."""


class Tokens(TypedDict):
    tokens: list[int] | list[Piece]


class Content(TypedDict):
    content: str


class Prompt(TypedDict):
    prompt: str


# ── rerank ────────────────────────────────────────────────────────────────────────────────────


class Document(Body):
    text: str


Documents = Annotated[list[str | Document], Field(min_length=1, max_length=MAX_DOCUMENTS)]


class RerankBody(Body):
    """Jina's and Cohere's body with ``documents``; that of Hugging Face's Text Embeddings Inference with ``texts``."""

    model: ModelName | None = None
    query: str
    documents: Documents | None = None
    texts: Annotated[list[str], Field(min_length=1, max_length=MAX_DOCUMENTS)] | None = None
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    return_text: bool | None = None
    ttl: float | str | None = None


async def rerank_documents(request: web.Request) -> web.Response:
    services, said = services_of(request), read_body(RerankBody, await json_body(request))
    if (said.documents is None) is (said.texts is None):
        raise InvalidRequest("Either 'documents' or 'texts' says what to rank.", param="documents")
    texts = said.texts or [one.text if isinstance(one, Document) else one for one in said.documents or ()]
    scores = await rerank(services, said.model or only_name(services), said.query, texts, ttl=ttl_of(said.ttl))
    best = scores.best(said.top_n)
    if said.texts is not None:
        return _json(
            [
                {"index": index, "score": score, **({"text": texts[index]} if said.return_text else {})}
                for index, score in best
            ]
        )
    return _json(
        {
            "object": "list",
            "model": scores.model,
            "results": [
                {
                    "index": index,
                    "relevance_score": score,
                    **({"document": {"text": texts[index]}} if said.return_documents else {}),
                }
                for index, score in best
            ],
            "usage": {"prompt_tokens": scores.n_tokens, "total_tokens": scores.n_tokens},
        }
    )


# ── tokens ────────────────────────────────────────────────────────────────────────────────────


class TokenizeBody(Body):
    model: ModelName | None = None
    content: str
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False


class DetokenizeBody(Body):
    model: ModelName | None = None
    tokens: TokenIds | Annotated[list[int], Field(max_length=0)]


async def tokenize(request: web.Request) -> web.Response:
    services, said = services_of(request), read_body(TokenizeBody, await json_body(request))
    refuse_long_texts("content", (said.content,), services.config.snapshot.settings.limits)
    served = served_by(services, said.model or only_name(services))
    async with holding(services, served) as lease:
        found = await lease.token_pieces([PromptText(said.content, said.parse_special)], said.add_special)
    if not said.with_pieces:
        return _json({"tokens": found.tokens})
    pairs = zip(found.tokens, found.pieces or (), strict=True)
    return _json({"tokens": [{"id": token, "piece": _piece(piece)} for token, piece in pairs]})


def _piece(data: bytes) -> str | list[int]:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


async def detokenize(request: web.Request) -> web.Response:
    services, said = services_of(request), read_body(DetokenizeBody, await json_body(request))
    served = served_by(services, said.model or only_name(services))
    async with holding(services, served) as lease:
        return _json({"content": await lease.detokenize(said.tokens)})


async def apply_template(request: web.Request) -> web.Response:
    """The body is that of a chat; the answer is the prompt that the chat would be."""
    services = services_of(request)
    raw = await json_body(request)
    try:
        said = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = None  # what is wrong with it is told below
    if isinstance(said, dict) and said.get("model") is None:
        raw = msgspec.json.encode({**said, "model": only_name(services)})
    asked = decode_chat(raw).requests[0]
    assert isinstance(asked.prompt, ChatPrompt)
    served = served_by(services, asked.model)
    async with holding(services, served) as lease:
        return _json({"prompt": (await render(served, asked.prompt, lease)).text})


def _json(value: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


OPERATIONS = (
    Operation(
        method="POST", path="/v1/rerank", summary="Say how well documents answer a query",
        body=RerankBody, answer=Ranking | list[Ranked], error=OpenAIError,
    ),
    Operation(
        method="POST", path="/tokenize", summary="Text to tokens",
        body=TokenizeBody, answer=Tokens, error=OpenAIError,
    ),
    Operation(
        method="POST", path="/detokenize", summary="Tokens to text",
        body=DetokenizeBody, answer=Content, error=OpenAIError,
    ),
    Operation(
        method="POST", path="/apply-template", summary="The prompt that a chat is for the model",
        body=ChatBody, answer=Prompt, error=OpenAIError,
    ),
)  # fmt: skip
