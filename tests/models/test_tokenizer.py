"""The tokenizer that trains the tiny models and the one that llama.cpp reads from their files are one."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("tokenizers", reason="the tiny models' recipe needs tokenizers: pip install 'lmd[test]'")

from tests.models.examples import draw_example
from tests.models.gguf_model import Shape, Vocabulary, write_model
from tests.models.random_model import random_weights
from tests.models.tokenizer import CONTROL, MARKERS, as_vocabulary, load_tokenizer, train_tokenizer

TINY_CHAT = Path(__file__).with_name("tiny-chat.gguf")


def test_the_bundled_model_holds_this_tokenizer_and_template() -> None:
    assert as_vocabulary(load_tokenizer()) == Vocabulary.from_gguf(TINY_CHAT)
    assert Vocabulary.from_gguf(TINY_CHAT.with_name("tiny-draft.gguf")) == Vocabulary.from_gguf(TINY_CHAT)


def test_llama_cpp_splits_examples_as_the_trainer_did(llama_sees: Callable[[Path, str], Any]) -> None:
    rng, tokenizer = Random(5), load_tokenizer()
    for _ in range(5):
        text = draw_example(rng).prompt[:400]
        assert llama_sees(TINY_CHAT, text).tokens == tokenizer.encode(text).ids


def test_a_tokenizer_trained_anew_keeps_the_special_tokens_and_loses_no_text() -> None:
    tokenizer = train_tokenizer(n_examples=300, vocab_size=400)
    assert tokenizer.get_vocab_size() == 400
    assert [tokenizer.id_to_token(token) for token in range(11)] == [*CONTROL, *MARKERS]
    text = 'It is 21° in Zürich — {"sky": "sunny"} 🌞'
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert train_tokenizer(n_examples=300, vocab_size=400).to_str() == tokenizer.to_str()


def test_a_model_with_a_freshly_trained_tokenizer_loads(tmp_path: Path, llama_sees: Callable[[Path, str], Any]) -> None:
    tokenizer = train_tokenizer(n_examples=300, vocab_size=400)
    path = tmp_path / "fresh.gguf"
    shape = Shape(architecture="llama", layers=1, width=32, heads=2, kv_heads=1, feed_forward=64)
    write_model(path, name="fresh", shape=shape, vocabulary=as_vocabulary(tokenizer), weights=random_weights(0))
    text = "<|im_start|>user\nWhat is the weather in Rome?<|im_end|>\n"
    seen = llama_sees(path, text)
    assert seen.tokens == tokenizer.encode(text).ids
    assert (seen.n_vocab, seen.eos, seen.finite) == (400, 2, True)
