"""Random prompts have their length, share nothing, and tokenize to about one token a word."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.bench import llama_source
from tests.bench.prompts import WORDS, n_words, random_text, shared_chat, unshared_chat
from tests.models.metadata import read_metadata


@given(st.integers(2, 500), st.integers())
def test_a_chat_has_the_words_asked_for(words: int, seed: int) -> None:
    messages = unshared_chat(Random(seed), words)
    assert n_words(messages) == words
    assert all(message["content"] for message in messages)


def test_chats_differ_within_their_first_words() -> None:
    beginnings = {unshared_chat(Random(f"0/{client}"), 100)[0]["content"] for client in range(200)}
    assert len(beginnings) == 200


def test_shared_chats_begin_alike_and_end_apart() -> None:
    system = random_text(Random(0), 50)
    first, second = (shared_chat(system, Random(seed), 10) for seed in (1, 2))
    assert first[0] == second[0] == {"role": "system", "content": system}
    assert first[1] != second[1]


def test_words_are_single_tokens_of_a_large_vocabulary() -> None:
    if llama_source.find() is None:
        pytest.skip("llama-cpp-python's source is not in the cache: python -m tests.bench.llama_source fetches it")
    tokens = set(read_metadata(llama_source.vocabulary_file("qwen2"))["tokenizer.ggml.tokens"].value)
    assert [word for word in WORDS if f"Ġ{word}".encode() not in tokens] == []
