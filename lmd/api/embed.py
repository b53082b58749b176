"""The path of requests for vectors and scores: resolve the model, lease its instance, have it compute.

As `lmd.api.generate` for text, and as that nothing here knows HTTP or a dialect.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from struct import Struct, unpack
from typing import TYPE_CHECKING

from lmd.api.activity import current_record
from lmd.api.generate import note_usage
from lmd.api.holding import holding, served_by
from lmd.api.limits import refuse_long_texts
from lmd.errors import ContextLengthExceeded, InvalidRequest
from lmd.generation import Usage
from lmd.worker.messages import Embedded, PromptText, PromptTokens

if TYPE_CHECKING:
    from lmd.api.served import Served
    from lmd.api.services import Services
    from lmd.loading import LoadedModel
    from lmd.pool.lease import Lease

_RANK = 4
"""``<arch>.pooling_type`` of a model that ranks."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """One vector for each text, in order, of ``width`` components. ``data``: little-endian float32."""

    served: Served
    loaded: LoadedModel
    """What computed them."""
    width: int
    data: bytes
    n_tokens: int
    """Of all texts."""
    seconds: float
    """From the request to the last vector, without loading the model."""

    def packed(self) -> Iterator[memoryview]:
        step = 4 * self.width
        view = memoryview(self.data)
        return (view[at : at + step] for at in range(0, len(view), step))

    def floats(self) -> Iterator[tuple[float, ...]]:
        return Struct(f"<{self.width}f").iter_unpack(self.data)


@dataclass(frozen=True, slots=True)
class Scores:
    """How well each document answers the query, in the documents' order; higher is better."""

    model: str
    scores: tuple[float, ...]
    n_tokens: int

    def best(self, n: int | None = None) -> list[tuple[int, float]]:
        """Documents' numbers with their scores, best first; ``n`` of them, or all."""
        ranked = sorted(enumerate(self.scores), key=lambda pair: -pair[1])
        return ranked[:n]


async def embed(
    services: Services,
    model: str,
    texts: Sequence[str | Sequence[int]],
    *,
    dimensions: int | None = None,
    ttl: float | None = None,
) -> Vectors:
    """A vector of length 1 for each of ``texts`` (text or token ids).

    InvalidRequest where the model makes no vectors, or not of so many ``dimensions``; ContextLengthExceeded (param
    "input"); and what resolving and leasing raise.
    """
    limits = services.config.snapshot.settings.limits
    refuse_long_texts("input", (text for text in texts if isinstance(text, str)), limits)
    async with _leased(services, model, ttl, ranks=False) as (served, lease):
        width = lease.loaded.n_vector
        if dimensions is not None and dimensions > width:
            raise InvalidRequest(
                f"The vectors of '{served.name}' have {width} dimensions; there are no {dimensions}.",
                hint=f"Ask for at most {width}, or leave 'dimensions' out.",
                param="dimensions",
            )
        parts: list[PromptText | PromptTokens] = [
            PromptText(text, special=False) if isinstance(text, str) else PromptTokens(list(text)) for text in texts
        ]
        begun = time.monotonic()
        answer = await lease.embed(parts, dimensions)
        _note(answer)
        seconds = time.monotonic() - begun
        return Vectors(served, lease.loaded, answer.width, answer.data, answer.n_tokens, seconds)


async def rerank(
    services: Services, model: str, query: str, documents: Sequence[str], *, ttl: float | None = None
) -> Scores:
    """A score for each of ``documents``, as the model's head gives it. Raises as `embed` does."""
    limits = services.config.snapshot.settings.limits
    refuse_long_texts("query", (query,), limits)
    refuse_long_texts("documents", documents, limits)
    async with _leased(services, model, ttl, ranks=True) as (served, lease):
        answer = await lease.rerank(query, documents)
        _note(answer)
        return Scores(served.name, unpack(f"<{len(answer.data) // 4}f", answer.data), answer.n_tokens)


@asynccontextmanager
async def _leased(
    services: Services, model: str, ttl: float | None, *, ranks: bool
) -> AsyncIterator[tuple[Served, Lease]]:
    served = served_by(services, model, ttl)
    _refuse_unless(served, ranks=ranks)
    async with holding(services, served) as lease:
        try:
            yield served, lease
        except ContextLengthExceeded as error:
            error.param = "documents" if ranks else "input"
            error.hint = "Shorten the texts, or load the model with a larger context_length."
            raise


def _refuse_unless(served: Served, *, ranks: bool) -> None:
    """InvalidRequest where the model's header says that it does something else."""
    is_ranker = served.wanted.model.header.pooling_type == _RANK
    if served.encodes and is_ranker is ranks:
        return
    if not served.encodes:
        kind, hint = "generates text", "'lmctl ls' shows models that do with the type 'embeddings'."
    elif is_ranker:
        kind, hint = "is a reranker", "Ask it at /v1/rerank, or name a model that does."
    else:
        kind, hint = "is an embedding model", "Ask it at /v1/embeddings, or name a reranker."
    what = "ranks no documents" if ranks else "makes no vectors"
    raise InvalidRequest(f"'{served.name}' {kind}; it {what}.", hint=hint, param="model")


def _note(answer: Embedded) -> None:
    record = current_record()
    if record is not None:
        note_usage(record, Usage(prompt_tokens=answer.n_tokens))
