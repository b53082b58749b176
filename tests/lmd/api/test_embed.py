"""Vectors, scores, tokens and templates over HTTP: the real daemon with generated BERT-type models."""

import asyncio
import base64
import struct
from typing import Any

import aiohttp
import numpy as np
import openai
import pytest
from gguf import PoolingType

from tests.conftest import MODELS, Daemon, StartDaemon
from tests.models.bert_model import BertShape, bert_weights, reference_vector, wordpiece_vocabulary, write_bert
from tests.models.lora import write_adapter

SHAPE = BertShape()
VOCABULARY = wordpiece_vocabulary(["hello", "world"])
WEIGHTS = bert_weights(SHAPE, VOCABULARY.n_tokens)
TEXTS = ["hello world", "world", "abc, def."]


@pytest.fixture(scope="module")
def encoders(start_daemon: StartDaemon, tmp_path_factory: pytest.TempPathFactory) -> Daemon:
    folder = tmp_path_factory.mktemp("encoders")
    ranker = bert_weights(SHAPE, VOCABULARY.n_tokens, rank=True)
    models = [
        MODELS / "tiny-chat.gguf",
        write_bert(folder / "tiny-bert.gguf", WEIGHTS, VOCABULARY, SHAPE),
        write_bert(folder / "tiny-ranker.gguf", ranker, VOCABULARY, SHAPE, pooling=PoolingType.RANK),
    ]
    adapter = write_adapter(folder / "style.gguf", models[1], architecture="bert")
    preset = f'model = "tiny-bert"\n[load]\nadapters = [{{ path = "{adapter}" }}]\n'
    return start_daemon(models=models, presets={"styled": preset})


@pytest.fixture(scope="module")
def client(encoders: Daemon) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{encoders.url}/v1", api_key="none", max_retries=0)


async def post(daemon: Daemon, path: str, body: Any) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(f"{daemon.url}{path}", json=body) as response:
        return response.status, await response.json()


async def tokens_of(daemon: Daemon, text: str, **more: Any) -> list[Any]:
    status, answer = await post(daemon, "/tokenize", {"model": "tiny-bert", "content": text, **more})
    assert status == 200
    return list(answer["tokens"])


# ── embeddings ────────────────────────────────────────────────────────────────────────────────


async def test_the_official_client_gets_the_reference_s_vectors(encoders: Daemon, client: openai.OpenAI) -> None:
    answer = await asyncio.to_thread(client.embeddings.create, model="tiny-bert", input=TEXTS)  # asks for base64
    tokens = [await tokens_of(encoders, text, add_special=True) for text in TEXTS]
    assert [one.index for one in answer.data] == [0, 1, 2]
    for one, ids in zip(answer.data, tokens, strict=True):
        assert np.abs(np.array(one.embedding) - reference_vector(WEIGHTS, SHAPE, ids)).max() < 1e-3
    assert answer.model == "tiny-bert"
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, tokens))


@pytest.mark.parametrize("path", ["/v1/embeddings", "/api/v0/embeddings"])
async def test_numbers_and_base64_are_the_same_vectors(encoders: Daemon, path: str) -> None:
    said: dict[str, Any] = {"model": "tiny-bert", "input": "hello world"}
    _, numbers = await post(encoders, path, said)
    _, packed = await post(encoders, path, {**said, "encoding_format": "base64"})
    vector = numbers["data"][0]["embedding"]
    assert vector == list(struct.unpack(f"<{SHAPE.width}f", base64.b64decode(packed["data"][0]["embedding"])))
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


async def test_text_and_its_tokens_have_one_vector(encoders: Daemon) -> None:
    ids = await tokens_of(encoders, "hello world", add_special=True)
    vectors = []
    for said in ("hello world", ["hello world"], ids, [ids], [ids, "hello world"]):
        _, answer = await post(encoders, "/v1/embeddings", {"model": "tiny-bert", "input": said})
        vectors += [one["embedding"] for one in answer["data"]]
    assert len(vectors) == 6
    assert all(vector == pytest.approx(vectors[0], abs=1e-3) for vector in vectors)


async def test_dimensions_cut_and_rescale(encoders: Daemon) -> None:
    said = {"model": "tiny-bert", "input": "hello"}
    _, whole = await post(encoders, "/v1/embeddings", said)
    _, cut = await post(encoders, "/v1/embeddings", {**said, "dimensions": 8})
    first = np.array(whole["data"][0]["embedding"][:8])
    assert cut["data"][0]["embedding"] == pytest.approx(first / np.linalg.norm(first), abs=1e-5)


async def test_many_clients_at_once_each_get_their_own(encoders: Daemon) -> None:
    texts = [chr(ord("a") + n % 26) * (1 + n % 7) for n in range(60)]
    answers = await asyncio.gather(
        *(post(encoders, "/v1/embeddings", {"model": "tiny-bert", "input": text}) for text in texts)
    )
    _, together = await post(encoders, "/v1/embeddings", {"model": "tiny-bert", "input": texts})
    for (_, alone), one in zip(answers, together["data"], strict=True):
        assert alone["data"][0]["embedding"] == pytest.approx(one["embedding"], abs=1e-3)


async def test_a_preset_s_adapter_changes_the_vectors(encoders: Daemon) -> None:
    _, plain = await post(encoders, "/v1/embeddings", {"model": "tiny-bert", "input": "hello"})
    _, styled = await post(encoders, "/v1/embeddings", {"model": "styled", "input": "hello"})
    assert styled["model"] == "styled"
    difference = np.subtract(plain["data"][0]["embedding"], styled["data"][0]["embedding"])
    assert np.abs(difference).max() > 0.01


@pytest.mark.parametrize(
    ("said", "param", "words"),
    [
        ({"model": "tiny-chat", "input": "a"}, "model", "generates text"),
        ({"model": "tiny-ranker", "input": "a"}, "model", "is a reranker"),
        ({"model": "tiny-bert"}, "input", "missing"),
        ({"model": "tiny-bert", "input": []}, "input", "empty"),
        ({"model": "tiny-bert", "input": ["a"] * 2049}, "input", "at most 2048"),
        ({"model": "tiny-bert", "input": ["a", []]}, "input.1", "empty"),
        ({"model": "tiny-bert", "input": [99999]}, "input.0", "vocabulary"),
        ({"model": "tiny-bert", "input": "a", "dimensions": 65}, "dimensions", "64 dimensions"),
        ({"model": "tiny-bert", "input": "a", "dimensions": 0}, "dimensions", "greater than"),
        ({"model": "tiny-bert", "input": "a", "encoding_format": "hex"}, "encoding_format", "float"),
        ({"model": "tiny-bert", "input": "hello " * 200}, "input", "maximum context length is 128 tokens"),
    ],
)
async def test_each_refusal_names_its_field(encoders: Daemon, said: Any, param: str, words: str) -> None:
    status, answer = await post(encoders, "/v1/embeddings", said)
    assert (status, answer["error"]["param"]) == (400, param)
    assert words in answer["error"]["message"]


@pytest.mark.parametrize("model", ["tiny-bert", "tiny-ranker"])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_encoder_generates_nothing(encoders: Daemon, model: str, stream: bool) -> None:
    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "stream": stream}
    status, answer = await post(encoders, "/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, "model")
    assert "/v1/embeddings" in answer["error"]["message"]


# ── rerank ────────────────────────────────────────────────────────────────────────────────────

DOCUMENTS = ["world", "hello hello", "abc", "x y z"]


@pytest.mark.parametrize("path", ["/v1/rerank", "/v1/reranking", "/rerank", "/reranking"])
async def test_documents_come_best_first(encoders: Daemon, path: str) -> None:
    said = {"model": "tiny-ranker", "query": "hello", "documents": DOCUMENTS}
    status, answer = await post(encoders, path, said)
    assert status == 200
    scores = [one["relevance_score"] for one in answer["results"]]
    assert scores == sorted(scores, reverse=True)
    assert sorted(one["index"] for one in answer["results"]) == [0, 1, 2, 3]
    assert answer["usage"]["total_tokens"] > len(DOCUMENTS)
    _, best = await post(encoders, path, {**said, "top_n": 2, "return_documents": True})
    assert [one["index"] for one in best["results"]] == [one["index"] for one in answer["results"][:2]]
    assert all(one["document"] == {"text": DOCUMENTS[one["index"]]} for one in best["results"])


async def test_documents_may_be_objects_and_texts_give_the_other_shape(encoders: Daemon) -> None:
    said = {"model": "tiny-ranker", "query": "hello"}
    _, plain = await post(encoders, "/v1/rerank", {**said, "documents": DOCUMENTS})
    _, objects = await post(encoders, "/v1/rerank", {**said, "documents": [{"text": text} for text in DOCUMENTS]})
    _, texts = await post(encoders, "/rerank", {**said, "texts": DOCUMENTS, "return_text": True})
    expected = [(one["index"], pytest.approx(one["relevance_score"], abs=1e-3)) for one in plain["results"]]
    assert [(one["index"], one["relevance_score"]) for one in objects["results"]] == expected
    assert [(one["index"], one["score"]) for one in texts] == expected
    assert all(one["text"] == DOCUMENTS[one["index"]] for one in texts)


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"model": "tiny-bert", "query": "a", "documents": ["b"]}, "model"),
        ({"model": "tiny-chat", "query": "a", "documents": ["b"]}, "model"),
        ({"model": "tiny-ranker", "query": "a"}, "documents"),
        ({"model": "tiny-ranker", "query": "a", "documents": ["b"], "texts": ["b"]}, "documents"),
        ({"model": "tiny-ranker", "query": "a", "documents": []}, "documents"),
        ({"model": "tiny-ranker", "query": "a", "documents": ["hello " * 200]}, "documents"),
        ({"model": "tiny-ranker", "documents": ["b"]}, "query"),
    ],
)
async def test_what_cannot_be_ranked_is_refused(encoders: Daemon, said: Any, param: str) -> None:
    status, answer = await post(encoders, "/v1/rerank", said)
    assert (status, answer["error"]["param"]) == (400, param)


# ── tokens and templates ──────────────────────────────────────────────────────────────────────


async def test_tokens_go_there_and_back(encoders: Daemon) -> None:
    text = "Hello, <|im_start|>wörld"
    for parse_special in (True, False):
        body = {"model": "tiny-chat", "content": text, "parse_special": parse_special}
        _, answer = await post(encoders, "/tokenize", body)
        assert (1 in answer["tokens"]) is parse_special
        _, back = await post(encoders, "/detokenize", {"model": "tiny-chat", "tokens": answer["tokens"]})
        assert back == {"content": text}
    assert await post(encoders, "/detokenize", {"model": "tiny-chat", "tokens": []}) == (200, {"content": ""})


async def test_pieces_are_text_or_bytes(encoders: Daemon) -> None:
    body = {"model": "tiny-chat", "content": "a猫", "with_pieces": True}
    _, answer = await post(encoders, "/tokenize", body)
    pieces = [one["piece"] for one in answer["tokens"]]
    assert b"".join(bytes(piece) if isinstance(piece, list) else piece.encode() for piece in pieces) == "a猫".encode()
    assert any(isinstance(piece, list) for piece in pieces)


async def test_special_tokens_are_added_on_demand(encoders: Daemon) -> None:
    plain = await tokens_of(encoders, "hello")
    assert await tokens_of(encoders, "hello", add_special=True) == [2, *plain, 3]


async def test_a_chat_becomes_its_prompt(encoders: Daemon) -> None:
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hi"}]}
    status, answer = await post(encoders, "/apply-template", body)
    assert status == 200
    assert "<|im_start|>user\nHi<|im_end|>\n" in answer["prompt"]
    assert answer["prompt"].endswith("<|im_start|>assistant\n")


async def test_without_a_name_only_the_one_model_is_meant(start_daemon: StartDaemon) -> None:
    one, two = start_daemon(models=[MODELS / "tiny-chat.gguf"]), start_daemon()
    for path, body in (
        ("/tokenize", {"content": "a"}),
        ("/detokenize", {"tokens": [5]}),
        ("/apply-template", {"messages": [{"role": "user", "content": "Hi"}]}),
    ):
        assert (await post(one, path, body))[0] == 200
        status, answer = await post(two, path, body)
        assert (status, answer["error"]["param"]) == (400, "model")
    await post(two, "/tokenize", {"model": "tiny-draft", "content": "a"})
    assert (await post(two, "/tokenize", {"content": "a"}))[0] == 200


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/apply-template", "/v1/rerank", "/v1/embeddings"])
@pytest.mark.parametrize("body", [[], "text", {}, {"model": 5}, {"model": "tiny-chat", "tokens": ["a"]}])
async def test_bodies_that_make_no_sense_are_refused(encoders: Daemon, path: str, body: Any) -> None:
    status, answer = await post(encoders, path, body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


async def test_a_chat_that_is_no_utf8_is_refused_where_its_prompt_is_asked_for(encoders: Daemon) -> None:
    body = b'{"model": "tiny-chat", "messages": [{"role": "user", "content": "\x80"}]}'
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{encoders.url}/apply-template", data=body, headers=headers) as answer,
    ):
        assert (answer.status, (await answer.json())["error"]["type"]) == (400, "invalid_request_error")


async def test_tokens_beyond_the_vocabulary_are_refused(encoders: Daemon) -> None:
    status, answer = await post(encoders, "/detokenize", {"model": "tiny-chat", "tokens": [10**6]})
    assert (status, answer["error"]["param"]) == (400, "tokens")


async def test_the_control_socket_tells_them_from_chat_models(encoders: Daemon) -> None:
    connector = aiohttp.UnixConnector(str(encoders.socket))
    async with aiohttp.ClientSession(connector=connector) as session:
        async with session.get("http://lmd/models") as response:
            rows = await response.json()
        async with session.post("http://lmd/v1/embeddings", json={"model": "tiny-bert", "input": "a"}) as response:
            assert response.status == 200
        async with session.get("http://lmd/instances") as response:
            instances = await response.json()
    types = {row["key"]: row["type"] for row in rows}
    assert types == {"tiny-chat": "llm", "tiny-bert": "embeddings", "tiny-ranker": "embeddings"}
    loaded = next(row for row in instances if row["id"] == "tiny-bert")
    assert (loaded["context_length"], loaded.get("kv_cells", 0)) == (SHAPE.n_ctx_train, 0)
