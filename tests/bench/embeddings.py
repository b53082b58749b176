"""Embeddings under measurement: texts of exactly so many tokens, sent together and by several clients."""

import asyncio
import random
import time
from collections.abc import Sequence

import aiohttp

from tests.bench.llama_source import vocabulary_file
from tests.bench.stream import RequestFailed
from tests.models.gguf_model import Vocabulary


def words(vocabulary: Vocabulary) -> list[str]:
    """Words of letters that are one token each, of a WordPiece vocabulary."""
    tokens = [token.decode() for token in vocabulary.fields["tokenizer.ggml.tokens"].value]
    return [token[1:] for token in tokens if token.startswith("▁") and token[1:].isascii() and token[1:].isalpha()]


def random_texts(seed: str, n_texts: int, n_tokens: int) -> list[str]:
    """Texts of ``n_tokens`` tokens with [CLS] and [SEP], in the vocabulary of `tests.models.bert_model.minilm`."""
    rng, known = random.Random(seed), words(Vocabulary.from_gguf(vocabulary_file("bert-bge")))
    return [" ".join(rng.choices(known, k=n_tokens - 2)) for _ in range(n_texts)]


async def embed(session: aiohttp.ClientSession, url: str, model: str, texts: Sequence[str], n_tokens: int) -> None:
    """One request. RequestFailed where the answer is not one vector for each text, or counts other tokens."""
    body = {"model": model, "input": list(texts), "encoding_format": "base64"}
    async with session.post(f"{url}/v1/embeddings", json=body) as response:
        answer = await response.json()
        if response.status != 200:
            raise RequestFailed(f"{response.status} from {url}/v1/embeddings: {answer}")
    if len(answer["data"]) != len(texts) or answer["usage"]["prompt_tokens"] != n_tokens * len(texts):
        raise RequestFailed(f"{len(answer['data'])} vectors, {answer['usage']} for {len(texts)} texts of {n_tokens}")


async def texts_per_second(
    session: aiohttp.ClientSession, url: str, model: str, requests: Sequence[Sequence[str]], n_tokens: int
) -> float:
    """All ``requests`` at once."""
    started = time.perf_counter()
    await asyncio.gather(*(embed(session, url, model, texts, n_tokens) for texts in requests))
    return sum(map(len, requests)) / (time.perf_counter() - started)
