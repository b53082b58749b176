"""OpenAI's embeddings, which LM Studio serves too: ``POST …/embeddings``."""

from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

import msgspec
from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from lmd.api.body import Body, read_body
from lmd.api.completions.shapes import ModelInfo, Runtime, Stats
from lmd.api.embed import Vectors, embed
from lmd.api.middleware import json_body
from lmd.api.services import services_of
from lmd.api.ttl import ttl_of
from lmd.errors import InvalidRequest

MAX_INPUTS = 2048
"""As many as OpenAI takes."""


class EmbeddingsBody(Body):
    model: Annotated[str, Field(min_length=1, max_length=1024)]
    input: str | list[str | list[int]] | list[int]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    ttl: float | str | None = None


class Embedding(TypedDict):
    object: Literal["embedding"]
    index: int
    """Of the input."""
    embedding: Sequence[float] | str
    """Of length 1; in base64: little-endian float32."""


class EmbeddingsUsage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class Embeddings(TypedDict):
    """The last three fields are v0's."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage
    stats: NotRequired[Stats]
    model_info: NotRequired[ModelInfo]
    runtime: NotRequired[Runtime]


Extras = Callable[[Vectors], Mapping[str, Any]]
"""What a dialect adds to the answer."""


async def respond_embeddings(request: web.Request, extras: Extras | None = None) -> web.Response:
    said = read_body(EmbeddingsBody, await json_body(request))
    vectors = await embed(
        services_of(request), said.model, _texts(said), dimensions=said.dimensions, ttl=ttl_of(said.ttl)
    )
    answer = encode_embeddings(vectors, base64=said.encoding_format == "base64")
    more = extras(vectors) if extras is not None else {}
    return web.Response(body=msgspec.json.encode({**answer, **more}), content_type="application/json")


def _texts(said: EmbeddingsBody) -> list[str | list[int]]:
    """One text, one list of token ids, or a list of either."""
    if isinstance(said.input, str):
        return [said.input]
    tokens = [one for one in said.input if isinstance(one, int)]
    texts: list[str | list[int]] = [tokens] if tokens else [one for one in said.input if not isinstance(one, int)]
    if not texts:
        raise InvalidRequest("'input' is empty.", hint="Give a text, or a list of texts.", param="input")
    if len(texts) > MAX_INPUTS:
        raise InvalidRequest(
            f"'input' has {len(texts)} texts, at most {MAX_INPUTS} are allowed.",
            hint="Send them in several requests.",
            param="input",
        )
    return texts


def encode_embeddings(vectors: Vectors, *, base64: bool) -> Embeddings:
    """The answer. ``base64``: vectors are the base64 text of their little-endian float32, not lists of numbers."""
    rows: Iterable[Sequence[float] | str] = vectors.floats()
    if base64:
        rows = (b64encode(packed).decode() for packed in vectors.packed())
    return {
        "object": "list",
        "data": [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(rows)],
        "model": vectors.served.name,
        "usage": {"prompt_tokens": vectors.n_tokens, "total_tokens": vectors.n_tokens},
    }
