"""The vocabulary, as llama.cpp has it."""

from tests.lmd.engine.driver import Driver


def test_the_ends_of_a_generation_are_all_that_there_are(driver: Driver) -> None:
    vocab = driver.instance.engine.vocab
    assert vocab.eog_tokens == tuple(token for token in range(vocab.n_tokens) if vocab.is_eog(token))
    assert vocab.eos in vocab.eog_tokens


def test_control_texts_are_those_that_become_one_token_only_where_they_may(driver: Driver) -> None:
    vocab = driver.instance.engine.vocab
    texts = driver.instance.loaded.control_texts
    hidden = [token for token in range(vocab.n_tokens) if not vocab.piece(token) and vocab.special_piece(token)]
    assert list(texts) == [vocab.text(token) for token in hidden]
    assert "<|im_end|>" in texts
    for text in texts:
        assert len(vocab.tokenize(text, special=True)) == 1
        assert len(vocab.tokenize(text, special=False)) > 1
