"""Vectors and scores against the reference in numpy, and how requests share batches."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import PoolingType
from hypothesis import given
from hypothesis import strategies as st

from lmd.engine.embedding import EmbeddingInstance, normalised, pack
from lmd.engine.llama import Backend
from lmd.errors import ContextLengthExceeded, InsufficientMemory, InvalidRequest, LmdError, LoadFailed, Unsupported
from lmd.loading import LoadParams
from tests.lmd.engine.driver import TINY
from tests.models.bert_model import (
    BertShape,
    bert_weights,
    reference_score,
    reference_vector,
    wordpiece_vocabulary,
    write_bert,
)
from tests.models.gguf_model import Shape, Vocabulary, write_model
from tests.models.metadata import Field
from tests.models.random_model import random_weights

SHAPE = BertShape()
VOCABULARY = wordpiece_vocabulary(["hello", "world", "count"])
WEIGHTS = bert_weights(SHAPE, VOCABULARY.n_tokens)
RANKER = bert_weights(SHAPE, VOCABULARY.n_tokens, seed=1, rank=True)
TEXTS = ["hello world", "a, b; cd!", "z" * 60, "count " * 40, "x"]


class Recorder:
    def __init__(self) -> None:
        self.vectors: dict[int, Any] = {}
        self.n_tokens: dict[int, int] = {}
        self.errors: dict[int, LmdError] = {}
        self.order: list[int] = []

    def embedded(self, id: int, width: int, data: bytes, n_tokens: int) -> None:
        assert id not in self.vectors
        self.vectors[id] = np.frombuffer(data, "<f4").reshape(-1, width)
        self.n_tokens[id] = n_tokens
        self.order.append(id)

    def failed(self, id: int, error: LmdError) -> None:
        self.errors[id] = error


class Encoder:
    """An embedding instance, driven by hand."""

    def __init__(self, backend: Backend, path: Path, **params: Any) -> None:
        free_memory = params.pop("free_memory", 0)
        self.answers = Recorder()
        self.instance = EmbeddingInstance(
            backend, str(path), LoadParams(threads=1, **params), self.answers, free_memory=free_memory
        )
        self.engine = self.instance.engine
        self.loaded = self.instance.loaded

    def tokens(self, text: str) -> list[int]:
        return self.engine.encode([(text, True)], add_special=True)

    def submit(self, id: int, texts: list[Any], dimensions: int | None = None) -> None:
        self.instance.embed(id, [(text, True) if isinstance(text, str) else text for text in texts], dimensions)

    def run(self) -> None:
        while self.engine.busy:
            self.engine.step()

    def embed(self, texts: list[Any], dimensions: int | None = None) -> Any:
        self.submit(0, texts, dimensions)
        self.run()
        return self.answers.vectors.pop(0)

    def close(self) -> None:
        self.instance.close()


@pytest.fixture
def make(backend: Backend, tmp_path: Path) -> Iterator[Callable[..., Encoder]]:
    made: list[Encoder] = []

    def build(pooling: PoolingType | None = PoolingType.MEAN, **params: Any) -> Encoder:
        weights = RANKER if pooling is PoolingType.RANK else WEIGHTS
        path = tmp_path / f"bert-{pooling}.gguf"
        made.append(Encoder(backend, write_bert(path, weights, VOCABULARY, SHAPE, pooling=pooling), **params))
        return made[-1]

    yield build
    for one in made:
        one.close()


# ── what is computed ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("pooling", [PoolingType.MEAN, PoolingType.CLS, PoolingType.LAST])
@pytest.mark.parametrize("flash_attention", [True, False])
def test_vectors_equal_those_of_the_reference(
    make: Callable[..., Encoder], pooling: PoolingType, flash_attention: bool
) -> None:
    encoder = make(pooling, flash_attention=flash_attention)
    assert encoder.loaded.pooling == pooling.name.lower()
    assert encoder.loaded.n_vector == SHAPE.width
    expected = [reference_vector(WEIGHTS, SHAPE, encoder.tokens(text), pooling) for text in TEXTS]
    assert np.abs(encoder.embed(TEXTS) - expected).max() < 1e-3


def test_an_encoder_whose_header_names_no_pooling_takes_the_mean(make: Callable[..., Encoder]) -> None:
    encoder = make(None)
    assert encoder.loaded.pooling == "mean"
    expected = reference_vector(WEIGHTS, SHAPE, encoder.tokens("hello"))
    assert np.abs(encoder.embed(["hello"])[0] - expected).max() < 1e-3


def test_a_reranker_scores_pairs_as_the_reference_does(make: Callable[..., Encoder]) -> None:
    encoder = make(PoolingType.RANK)
    documents = ["world", "count to ten", "hello hello"]
    encoder.instance.rerank(7, "hello?", documents)
    encoder.run()
    cls, sep = encoder.tokens("")
    query = encoder.tokens("hello?")[1:-1]
    pairs = [[cls, *query, sep, *encoder.tokens(document)[1:-1]] for document in documents]
    expected = [reference_score(RANKER, SHAPE, pair) for pair in pairs]
    assert np.abs(encoder.answers.vectors[7][:, 0] - expected).max() < 1e-3
    assert np.ptp(expected) > 0.01
    assert encoder.answers.n_tokens[7] == sum(map(len, pairs))
    assert (encoder.loaded.pooling, encoder.loaded.n_vector) == ("rank", 1)


def test_control_tokens_in_a_document_are_text(make: Callable[..., Encoder]) -> None:
    encoder = make(PoolingType.RANK)
    encoder.instance.rerank(1, "a", ["b [SEP] c"])
    encoder.instance.rerank(2, "a", ["b [ sep ] c"])
    encoder.run()
    assert encoder.answers.vectors[1] == pytest.approx(encoder.answers.vectors[2])


def test_a_texts_vector_does_not_depend_on_its_company(make: Callable[..., Encoder]) -> None:
    encoder = make()
    alone = np.concatenate([encoder.embed([text]) for text in TEXTS])
    assert np.abs(encoder.embed(TEXTS * 30)[: len(TEXTS)] - alone).max() < 1e-3


def test_token_ids_are_taken_as_they_are(make: Callable[..., Encoder]) -> None:
    encoder = make()
    tokens = encoder.tokens("hello world")
    assert np.array_equal(encoder.embed([tokens]), encoder.embed(["hello world"]))
    assert np.abs(encoder.embed([tokens[1:-1]])[0] - encoder.embed(["hello world"])[0]).max() > 1e-3


def test_fewer_dimensions_are_the_first_ones_scaled_to_length_one(make: Callable[..., Encoder]) -> None:
    encoder = make()
    whole, cut = encoder.embed(["hello"])[0], encoder.embed(["hello"], 8)[0]
    assert cut == pytest.approx(whole[:8] / np.linalg.norm(whole[:8]), abs=1e-6)


def test_a_vector_of_zeros_stays_one() -> None:
    assert normalised(np.zeros((1, 3), np.float32), None).tolist() == [[0.0, 0.0, 0.0]]


# ── how requests share batches ────────────────────────────────────────────────────────────────


def test_texts_of_several_requests_are_computed_together(make: Callable[..., Encoder]) -> None:
    encoder = make()
    for id in range(8):
        encoder.submit(id, [TEXTS[id % len(TEXTS)]])
    encoder.engine.step()
    assert not encoder.engine.busy
    assert sorted(encoder.answers.vectors) == list(range(8))
    for id in range(8):
        expected = reference_vector(WEIGHTS, SHAPE, encoder.tokens(TEXTS[id % len(TEXTS)]))
        assert np.abs(encoder.answers.vectors[id][0] - expected).max() < 1e-3


def test_a_small_request_does_not_wait_behind_a_large_one(make: Callable[..., Encoder]) -> None:
    encoder = make(batch=128, parallel=4)
    encoder.submit(1, ["hello world"] * 40)
    encoder.submit(2, ["world"])
    encoder.run()
    assert encoder.answers.order == [2, 1]


def test_a_cancelled_request_is_answered_and_computed_no_further(make: Callable[..., Encoder]) -> None:
    encoder = make(parallel=2)
    encoder.submit(1, ["hello"] * 10)
    encoder.submit(2, ["world"])
    encoder.engine.step()
    encoder.instance.cancel(1)
    encoder.instance.cancel(99)
    assert not encoder.engine.busy
    assert (list(encoder.answers.errors), encoder.answers.order) == ([1], [2])


@given(
    st.lists(st.lists(st.integers(1, 40), max_size=12), max_size=6),
    st.integers(1, 64),
    st.integers(1, 8),
)
def test_packing_fills_a_batch_and_overfills_none(waiting: list[list[int]], budget: int, n_sequences: int) -> None:
    taken = pack(waiting, budget, n_sequences)
    chosen = [length for lengths, n in zip(waiting, taken, strict=True) for length in lengths[:n]]
    assert len(chosen) <= n_sequences
    assert sum(chosen) <= budget or len(chosen) == 1
    first = next((index for index, lengths in enumerate(waiting) if lengths), None)
    if first is None:
        assert chosen == []
        return
    assert taken[first] >= 1
    left = [lengths[n] for lengths, n in zip(waiting, taken, strict=True) if n < len(lengths)]
    if left and len(chosen) < n_sequences:
        assert min(left) > budget - sum(chosen)


@given(st.integers(1, 5), st.integers(1, 20))
def test_packing_takes_from_all_requests_in_turn(n_requests: int, n_sequences: int) -> None:
    taken = pack([[1] * 10] * n_requests, 1000, n_sequences)
    assert max(taken) - min(taken) <= 1


# ── what is refused ───────────────────────────────────────────────────────────────────────────


def test_what_cannot_be_embedded_is_refused_and_queues_nothing(make: Callable[..., Encoder]) -> None:
    encoder = make()
    with pytest.raises(ContextLengthExceeded) as too_long:
        encoder.submit(1, ["hello", "count " * 127])
    assert (too_long.value.n_prompt, too_long.value.n_ctx) == (129, 128)
    with pytest.raises(InvalidRequest, match="not in this model's vocabulary"):
        encoder.submit(1, [[5, 100_000]])
    with pytest.raises(InvalidRequest, match="Text 1 is empty"):
        encoder.submit(1, ["hello", []])
    for dimensions in (0, SHAPE.width + 1):
        with pytest.raises(InvalidRequest, match="64 dimensions"):
            encoder.submit(1, ["hello"], dimensions)
    assert not encoder.engine.busy


def test_each_kind_of_model_refuses_the_others_work(make: Callable[..., Encoder]) -> None:
    with pytest.raises(Unsupported, match="no head"):
        make().instance.rerank(1, "a", ["b"])
    with pytest.raises(Unsupported, match="makes no vectors"):
        make(PoolingType.RANK).submit(1, ["a"])


def test_the_longest_text_is_what_the_model_knows_positions_for(make: Callable[..., Encoder]) -> None:
    encoder = make(context_length=4096)
    assert encoder.loaded.context_length == SHAPE.n_ctx_train
    text = "count " * (SHAPE.n_ctx_train - 2)
    expected = reference_vector(WEIGHTS, SHAPE, encoder.tokens(text))
    assert np.abs(encoder.embed([text])[0] - expected).max() < 1e-3


def test_a_text_longer_than_the_batch_goes_by_itself(make: Callable[..., Encoder]) -> None:
    encoder = make(batch=16)
    assert encoder.loaded.batch == 16
    expected = [reference_vector(WEIGHTS, SHAPE, encoder.tokens(text)) for text in TEXTS]
    assert np.abs(encoder.embed(TEXTS) - expected).max() < 1e-3


def test_short_memory_refuses_what_was_asked_for(make: Callable[..., Encoder]) -> None:
    with pytest.raises(InsufficientMemory, match="Texts of 100 tokens"):
        make(context_length=100, free_memory=1)


def test_a_file_that_is_no_model_is_refused(backend: Backend, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF and nothing more")
    with pytest.raises(LoadFailed):
        Encoder(backend, path)


def test_tokens_come_back_as_text(make: Callable[..., Encoder]) -> None:
    engine = make().engine
    assert engine.decode(engine.encode([("hello world", True)], add_special=False)).split() == ["hello", "world"]
    assert engine.encode([("a [SEP]", True)], add_special=False) != engine.encode(
        [("a [SEP]", False)], add_special=False
    )


# ── models made from generating ones ──────────────────────────────────────────────────────────


@pytest.mark.parametrize("pooling", [PoolingType.LAST, PoolingType.MEAN])
def test_a_decoder_with_a_pooling_type_makes_vectors_too(
    backend: Backend, tmp_path: Path, pooling: PoolingType
) -> None:
    vocabulary = Vocabulary.from_gguf(TINY)
    fields = {**vocabulary.fields, "llama.pooling_type": Field.uint32(pooling)}
    shape = Shape(architecture="llama", layers=2, width=64, heads=4, kv_heads=2, feed_forward=128, n_ctx_train=256)
    path = tmp_path / "decoder.gguf"
    write_model(path, name="d", shape=shape, vocabulary=replace(vocabulary, fields=fields), weights=random_weights(0))
    encoder = Encoder(backend, path, batch=64)
    assert (encoder.loaded.pooling, encoder.loaded.n_vector) == (pooling.name.lower(), 64)
    texts = ["Count to ten.", "What is 2 + 2?", "word " * 60, "Count to ten"]
    alone = np.concatenate([encoder.embed([text]) for text in texts])
    assert np.abs(encoder.embed(texts * 20)[-len(texts) :] - alone).max() < 1e-2
    assert np.linalg.norm(alone, axis=1) == pytest.approx(1, abs=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.05
    encoder.close()
