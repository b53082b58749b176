import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd.engine.batch import Batch
from lmd.engine.context import Context, ContextParams
from lmd.engine.llama import Backend, Model
from lmd.engine.sequence import shortened
from lmd.errors import ContextLengthExceeded, InvalidRequest, LoadFailed
from lmd.generation import FinishReason
from lmd.loading import LoadParams
from tests.lmd.engine.driver import TINY, Driver, chat

Make = Callable[..., Driver]
COUNT_20 = ", ".join(map(str, range(1, 21))) + "."
QUESTIONS = [
    "Count to 20.",
    "Hello",
    "Tell me a story about Eva in Delhi.",
    "Repeat after me: red blue green",
    "What is 3 + 4?",
    "Count to 30.",
    "Who are you?",
    "Give JSON for Paul, age 33, from Lima.",
]


def test_it_says_what_the_model_says(driver: Driver) -> None:
    answer = driver.ask(chat("Count to 20."))
    assert answer.text == COUNT_20
    assert answer.reason is FinishReason.EOG
    assert answer.usage.prompt_tokens == 12
    assert answer.usage.completion_tokens == 41
    assert answer.progress[-1] == (12, 12)


def test_many_more_requests_than_sequences_each_get_their_own_answer(driver: Driver) -> None:
    ids = {driver.submit(chat(f"Count to {n}.")): n for n in range(2, 34)}
    assert driver.engine.n_queued == 32
    driver.run()
    for id, n in ids.items():
        assert driver.sink.of(id).text == ", ".join(map(str, range(1, n + 1))) + "."


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_greedy_text_does_not_depend_on_the_batch_nor_on_what_is_reused(driver: Driver, seed: int) -> None:
    rng = random.Random(seed)
    expected = {q: driver.ask(chat(q), raw={"cache_prompt": False}).text for q in QUESTIONS}
    pending: dict[int, str] = {}
    for _ in range(rng.randrange(1, 12)):
        question = rng.choice(QUESTIONS)
        pending[driver.submit(chat(question), raw={"cache_prompt": rng.random() < 0.8})] = question
        for _ in range(rng.randrange(0, 30)):
            driver.engine.step()
    driver.run()
    for id, question in pending.items():
        assert driver.sink.of(id).text == expected[question]


def test_the_same_seed_gives_the_same_text_and_another_seed_another(driver: Driver) -> None:
    def sample(seed: int) -> str:
        return driver.ask(chat("Tell me a story about Eva in Delhi."), temperature=1.5, seed=seed).text

    texts = {seed: sample(seed) for seed in range(4)}
    assert all(sample(seed) == text for seed, text in texts.items())
    assert len(set(texts.values())) > 1


@pytest.mark.parametrize(
    "sampling", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"typical_p": 1e-6}, {"top_n_sigma": 1e-6}]
)
def test_each_truncation_at_its_narrowest_is_greedy(driver: Driver, sampling: dict[str, Any]) -> None:
    assert driver.ask(chat("Count to 20."), temperature=1.0, seed=1, **sampling).text == COUNT_20


@pytest.mark.parametrize(
    "sampling",
    [
        {"xtc_probability": 1.0, "xtc_threshold": 0.01},
        {"dynatemp_range": 1.4},
        {"mirostat": 1},
        {"mirostat": 2, "mirostat_tau": 9.0},
        {"dry_multiplier": 8.0, "dry_allowed_length": 1, "dry_sequence_breakers": ()},
        {"repeat_penalty": 1.5, "repeat_last_n": -1},
    ],
)
def test_each_further_sampler_changes_the_draw_and_keeps_to_its_seed(driver: Driver, sampling: dict[str, Any]) -> None:
    def tell(**kw: Any) -> str:
        question = chat("Tell me a story about Eva in Delhi.")
        # Without reuse: a prompt computed in other chunks differs in the last bits, which such a draw can show.
        return driver.ask(question, temperature=1.5, seed=11, max_tokens=80, raw={"cache_prompt": False}, **kw).text

    assert tell(**sampling) == tell(**sampling)
    assert tell(**sampling) != tell()


def test_no_penalty_window_means_no_penalty(driver: Driver) -> None:
    assert driver.ask(chat("Count to 20."), repeat_penalty=5.0, repeat_last_n=0).text == COUNT_20


def test_penalties_and_bias_change_what_is_said(driver: Driver) -> None:
    assert driver.ask(chat("Count to 20."), repeat_penalty=5.0).text != COUNT_20
    assert driver.ask(chat("Count to 20."), frequency_penalty=2.0).text != COUNT_20
    story: dict[str, Any] = {"temperature": 1.5, "seed": 3}
    plain = driver.ask(chat("Tell me a story about Eva in Delhi."), **story).text
    assert driver.ask(chat("Tell me a story about Eva in Delhi."), presence_penalty=2.0, **story).text != plain
    (one,) = driver.engine.vocab.tokenize("1", special=False)
    assert "1" not in driver.ask(chat("Count to 5."), raw={"logit_bias": {one: -100.0}}).text


def test_a_stop_string_over_several_tokens_ends_the_text_before_it(driver: Driver) -> None:
    answer = driver.ask(chat("Count to 20."), stop=("8, 9", "never"))
    assert answer.text == "1, 2, 3, 4, 5, 6, 7, "
    assert answer.reason is FinishReason.STOP
    assert answer.stop == "8, 9"


def test_max_tokens_and_the_end_of_the_context_are_told_apart(make: Make) -> None:
    driver = make(context_length=32, parallel=2, kv_cells=64)
    short = driver.ask(chat("Count to 20."), max_tokens=5)
    assert (short.reason, short.usage.completion_tokens) == (FinishReason.LENGTH, 5)
    full = driver.ask(chat("Count to 20."), max_tokens=-1)
    assert full.reason is FinishReason.CONTEXT
    assert full.usage.prompt_tokens + full.usage.completion_tokens == 32
    assert COUNT_20.startswith(full.text)


@pytest.mark.parametrize("policy", ["rolling_window", "truncate_middle"])
def test_an_answer_can_outgrow_the_context(make: Make, policy: str) -> None:
    driver = make(context_length=64, parallel=2, kv_cells=128)
    neighbour = driver.submit(chat("Count to 10."))
    answer = driver.ask(
        chat("Count to 40."),
        max_tokens=200,
        context_overflow=policy,
        raw={"ignore_eos": True, "draft": "prompt-lookup"},
    )
    assert (answer.reason, answer.usage.completion_tokens) == (FinishReason.LENGTH, 200)
    assert answer.text.startswith(COUNT_20[:50])
    assert driver.sink.of(neighbour).text.endswith("9, 10.")


@pytest.mark.parametrize("policy", ["rolling_window", "truncate_middle"])
def test_a_prompt_that_does_not_fit_is_cut_by_policy(make: Make, policy: str) -> None:
    driver = make(context_length=64, parallel=1)
    answer = driver.ask("Be brief. " * 100 + chat("Hello"), context_overflow=policy)
    assert answer.usage.prompt_tokens == 32
    assert answer.text.startswith("Hello!")


def test_shortening_keeps_the_end_and_by_policy_the_beginning() -> None:
    tokens = list(range(100))
    assert shortened(tokens, 10, "rolling_window", bos=-1) == list(range(90, 100))
    assert shortened(tokens, 10, "rolling_window", bos=0) == [0, *range(91, 100)]
    assert shortened(tokens, 10, "truncate_middle", bos=-1) == [0, 1, 2, 3, 4, 95, 96, 97, 98, 99]
    assert shortened(tokens, 100, "rolling_window", bos=-1) == tokens


def test_no_tokens_are_a_finished_answer(driver: Driver) -> None:
    assert driver.ask(chat("Hello"), max_tokens=0).reason is FinishReason.LENGTH


def test_a_prompt_that_fills_the_context_is_refused_with_both_figures(make: Make) -> None:
    driver = make(context_length=32, parallel=1)
    with pytest.raises(ContextLengthExceeded, match=r"maximum context length is 32 tokens.*has 33 tokens"):
        driver.submit([5] * 33)
    assert not driver.engine.busy


def test_prompts_that_cannot_be_served_are_refused(driver: Driver) -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        driver.submit("")
    with pytest.raises(InvalidRequest, match="vocabulary"):
        driver.submit([1, 999_999])
    with pytest.raises(InvalidRequest, match="vocabulary"):
        driver.submit(chat("Hello"), raw={"logit_bias": {-1: 1.0}})
    assert driver.ask(chat("Hello")).text == "Hello! How can I help you?"


def test_ignore_eos_goes_on_to_max_tokens(driver: Driver) -> None:
    answer = driver.ask(chat("Hello"), max_tokens=40, raw={"ignore_eos": True})
    assert answer.usage.completion_tokens == 40
    assert answer.reason is FinishReason.LENGTH


def test_a_cancelled_sequence_ends_at_once_and_the_others_go_on(driver: Driver) -> None:
    doomed, kept = driver.submit(chat("Count to 40.")), driver.submit(chat("Count to 20."))
    queued = [driver.submit(chat("Hello")) for _ in range(4)]
    for _ in range(10):
        driver.engine.step()
    driver.engine.cancel(doomed)
    driver.engine.cancel(queued[-1])
    driver.engine.cancel(12345)
    assert driver.sink.of(doomed).reason is FinishReason.CANCELLED
    assert driver.sink.of(queued[-1]).reason is FinishReason.CANCELLED
    driver.run()
    assert driver.sink.of(kept).text == COUNT_20
    assert ", ".join(map(str, range(1, 41))).startswith(driver.sink.of(doomed).text)


def test_a_cancelled_prompt_gives_its_slot_back_within_a_step(make: Make) -> None:
    driver = make(context_length=4096, parallel=1, batch=64)
    long = driver.submit([7] * 4000)
    driver.engine.step()
    waiting = driver.submit(chat("Hello"))
    driver.engine.cancel(long)
    driver.engine.step()
    assert driver.sink.of(waiting).progress
    driver.run()
    assert driver.sink.of(waiting).text == "Hello! How can I help you?"


@pytest.mark.parametrize(("cells", "batches"), [({"kv_cells": 8192}, 1), ({}, 2)], ids=["pool", "streams"])
def test_a_stream_gets_a_token_beside_every_batch_of_a_long_prompt(
    make: Make, cells: dict[str, int], batches: int
) -> None:
    driver = make(context_length=4096, parallel=2, batch=64, **cells)
    stream = driver.submit(chat("Count to 40."))
    driver.engine.step()
    long = driver.submit([7] * 2000, max_tokens=1)
    for _ in range(20):
        before, done = len(driver.sink.of(stream).pieces), driver.sink.of(long).progress[-1:]
        for _ in range(batches):
            driver.engine.step()
        assert len(driver.sink.of(stream).pieces) == before + 1
        assert driver.sink.of(long).progress[-1:] != done
    assert not driver.sink.of(long).pieces
    driver.run()


def test_the_next_turn_computes_only_what_is_new(driver: Driver) -> None:
    first = chat("My name is Grace.")
    answer = driver.ask(first)
    turn = f"{first}{answer.text}<|im_end|>\n" + chat("What is my name?")
    again = driver.ask(turn)
    assert again.text == "Your name is Grace."
    assert again.usage.cached_tokens >= answer.usage.prompt_tokens
    assert driver.ask(turn, raw={"cache_prompt": False}).usage.cached_tokens == 0


def test_requests_that_come_together_compute_a_shared_prefix_once(make: Make) -> None:
    driver = make(context_length=2048, parallel=4, batch=64)
    system = "Be brief. " * 40  # the model is so sure here that no rounding decides
    ids = [driver.submit(chat(f"Count to {n}.", system)) for n in range(5, 13)]
    driver.run()
    answers = [driver.sink.of(id) for id in ids]
    total = sum(answer.usage.prompt_tokens for answer in answers)
    computed = total - sum(answer.usage.cached_tokens for answer in answers)
    assert computed < total / 4
    alone = [driver.ask(chat(f"Count to {n}.", system), raw={"cache_prompt": False}) for n in range(5, 13)]
    assert [answer.text for answer in answers] == [answer.text for answer in alone]


def test_an_evicted_conversation_comes_back_without_being_computed(make: Make) -> None:
    driver = make(context_length=1024, parallel=1, kv_cells=1024, prompt_cache=2**24)
    system = "Be brief. " * 15
    first = driver.ask(chat("My name is Grace.", system))
    for n in range(12):
        driver.ask(chat(f"Count to {n + 2}.", f"Be brief, please, {n}. " * 20))
    turn = chat("My name is Grace.", system) + first.text + "<|im_end|>\n" + chat("What is my name?")
    again = driver.ask(turn)
    assert again.usage.cached_tokens >= first.usage.prompt_tokens
    assert again.text == driver.ask(turn, raw={"cache_prompt": False}).text == "Your name is Grace."


def test_a_stream_that_is_still_to_be_copied_is_not_overwritten_from_the_store(make: Make) -> None:
    driver = make(context_length=1024, parallel=2, prompt_cache=2**24)
    prompts = [chat(f"Count to {n}.", f"Be brief, please, {n}. " * 30) for n in (5, 6, 7)]
    stored, left, right = prompts
    for prompt in (stored, left, right, left):
        driver.ask(prompt)
    # One follows the first half of what `left` retains, which is copied; the other finds only that slot, and its own
    # beginning in the store.
    turns = [left[: len(left) // 3] + chat("Count to 8."), stored + "5<|im_end|>\n" + chat("Count to 9.")]
    ids = [driver.submit(turn) for turn in turns]
    driver.run()
    assert driver.sink.of(ids[0]).usage.cached_tokens >= 64
    alone = [driver.ask(turn, raw={"cache_prompt": False}).text for turn in turns]
    assert [driver.sink.of(id).text for id in ids] == alone


def test_short_prompts_of_one_length_are_computed_together(make: Make) -> None:
    driver = make(context_length=512, parallel=4)
    for n in range(4):
        driver.submit([7 + n] * 20, max_tokens=1)
    driver.engine.step()
    assert driver.engine._batch.n == 80


def test_no_prompt_that_fits_into_a_batch_is_computed_in_pieces(make: Make) -> None:
    driver = make(context_length=512, parallel=4, batch=256)
    lengths = [100, 99, 98, 160]
    ids = [driver.submit([7 + n] * length, max_tokens=1) for n, length in enumerate(lengths)]
    driver.run()
    assert [driver.sink.of(id).progress for id in ids] == [[(length, length)] for length in lengths]


def test_streams_that_moved_go_on_as_if_nothing_had_happened(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = make(context_length=512, parallel=4)
    moves, gather = [], driver.engine.slots.gather
    monkeypatch.setattr(driver.engine.slots, "gather", lambda: moves.append(gather()) or moves[-1])
    ids = {n: driver.submit(chat(f"Count to {n}."), raw={"cache_prompt": False}) for n in (30, 3, 4, 31)}
    driver.run()
    assert any(moves)
    for n, id in ids.items():
        assert driver.sink.of(id).text == ", ".join(map(str, range(1, n + 1))) + "."


def test_sequences_wait_for_cells_instead_of_failing(make: Make) -> None:
    driver = make(context_length=128, parallel=4, kv_cells=256)
    ids = {driver.submit(chat(f"Count to {n}.")): n for n in range(25, 37)}
    driver.run()
    for id, n in ids.items():
        assert driver.sink.of(id).text == ", ".join(map(str, range(1, n + 1))) + "."


def test_a_follower_is_served_when_the_sequence_that_it_waits_for_is_cancelled(make: Make) -> None:
    driver = make(context_length=2048, parallel=2, batch=32)
    system = "Be brief. " * 80
    leader = driver.submit(chat("Count to 7.", system))
    driver.engine.step()
    follower = driver.submit(chat("Count to 9.", system))
    driver.engine.step()
    assert driver.engine.n_queued == 1
    driver.engine.cancel(leader)
    driver.run()
    expected = driver.ask(chat("Count to 9.", system), raw={"cache_prompt": False}).text
    assert driver.sink.of(follower).text == expected


def test_logprobs_are_those_of_the_whole_vocabulary(driver: Driver) -> None:
    answer = driver.ask(chat("Hello"), raw={"logprobs": 3})
    assert b"".join(p.data for p in answer.logprobs).decode() == answer.text
    for entry in answer.logprobs:
        assert entry.logprob <= 0
        assert entry.top[0][0] == entry.token
        assert entry.top[0][2] == pytest.approx(entry.logprob)
        assert sum(math.exp(p) for _, _, p in entry.top) <= 1.0001
    full = driver.ask(chat("Hello"), max_tokens=1, raw={"logprobs": 5000}).logprobs[0]
    assert sum(math.exp(p) for _, _, p in full.top) == pytest.approx(1.0)


def predicted(backend: Backend, tokens: list[int]) -> npt.NDArray[np.float64]:
    """The log-probabilities [len(tokens), n_vocab] of what follows each token, all computed at once."""
    model = Model(backend, str(TINY), LoadParams(), gpu_layers=0)
    n = len(tokens)
    exact: Any = {"cache_type": "f32", "flash_attention": False}
    context = Context(model, ContextParams(n_cells=n, n_batch=n, n_seq_max=1, n_outputs_max=n, n_threads=1, **exact))
    batch = Batch(n)
    batch.add(tokens, 0, 0, n)
    context.decode(batch)
    logits = np.array([context.logits(index) for index in range(n)], np.float64)
    for part in (batch, context, model):
        part.close()
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def test_a_prompt_is_told_with_the_probability_of_each_of_its_tokens(make: Make, backend: Backend) -> None:
    driver = make(batch=64, draft_model="prompt-lookup", kv_cache_type="f32", flash_attention=False)
    prompt, other = chat("Count to 30.", "Be brief, please, and polite. " * 30), chat("Count to 20.")
    expected_text = driver.ask(prompt).text
    stream = driver.submit(other)
    driver.engine.step()
    tokens = driver.engine.encode([(prompt, True)], add_special=False)
    answers = [driver.submit(tokens, raw={"prompt_logprobs": True, "logprobs": 2}) for _ in range(2)]
    driver.run()
    expected = predicted(backend, tokens)
    assert driver.sink.of(stream).text == COUNT_20
    for answer in map(driver.sink.of, answers):
        told = answer.prompt
        assert [one.token for one in told] == tokens
        assert b"".join(one.data for one in told).decode() == prompt
        assert (told[0].logprob, told[0].top) == (None, ())
        for position, one in enumerate(told[1:]):
            assert one.logprob == pytest.approx(expected[position, one.token], abs=0.02)
            assert [p for _, _, p in one.top] == pytest.approx(np.sort(expected[position])[:-3:-1], abs=0.02)
        assert answer.usage.cached_tokens == 0
        assert answer.text == expected_text
        assert len(answer.logprobs) == answer.usage.completion_tokens


def test_a_prompt_is_told_also_where_nothing_is_to_be_generated(driver: Driver) -> None:
    prompt = chat("Hello")
    whole = driver.ask(prompt, raw={"prompt_logprobs": True, "logprobs": 0}).prompt
    answer = driver.ask(prompt, max_tokens=0, raw={"prompt_logprobs": True, "logprobs": 0})
    assert answer.prompt == whole
    assert (answer.text, answer.reason, answer.usage.completion_tokens) == ("", FinishReason.LENGTH, 0)


def test_a_prompt_that_is_told_is_never_cut(make: Make) -> None:
    driver = make(context_length=128)
    with pytest.raises(ContextLengthExceeded):
        driver.submit("Hello. " * 200, context_overflow="truncate_middle", raw={"prompt_logprobs": True})


def test_a_prompt_is_told_once_although_it_had_to_give_way(make: Make) -> None:
    driver = make(context_length=256, parallel=3, kv_cells=300, batch=32)
    prompts = [f"Count to {n}. " + "Be brief. " * 30 for n in range(20, 25)]
    ids = [
        driver.submit(prompt, max_tokens=60, raw={"prompt_logprobs": True, "ignore_eos": True}) for prompt in prompts
    ]
    driver.run()
    for id, prompt in zip(ids, prompts, strict=True):
        assert b"".join(one.data for one in driver.sink.of(id).prompt).decode() == prompt


def test_control_tokens_give_text_only_where_they_are_preserved(driver: Driver) -> None:
    end = driver.engine.vocab.control_tokens(["<|im_end|>"])
    raw = {"logit_bias": dict.fromkeys(end, 100.0), "ignore_eos": False}
    assert driver.ask(chat("Hello"), raw=raw).text == ""
    (start,) = driver.engine.vocab.control_tokens(["<|im_start|>"])
    raw = {"logit_bias": {start: 100.0}}
    assert driver.ask(chat("Hello"), max_tokens=2, raw=raw).text == ""
    raw = {"logit_bias": {start: 100.0}, "preserved": ["<|im_start|>"]}
    assert driver.ask(chat("Hello"), max_tokens=2, raw=raw).text == "<|im_start|>" * 2


def test_a_file_that_is_no_model_fails_with_the_reason(backend: Backend, tmp_path: Any) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + b"\0" * 100)
    with pytest.raises(LoadFailed, match=r"cannot load bad\.gguf"):
        Model(backend, str(bad), LoadParams())
    with pytest.raises(LoadFailed, match="no file"):
        Model(backend, str(tmp_path / "none.gguf"), LoadParams())


def test_drawing_in_threads_changes_no_token(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def texts() -> list[str]:
        driver = make(parallel=6, threads=3)
        ids = [
            driver.submit(chat(question), temperature=temperature, seed=3, top_p=top_p)
            for question in QUESTIONS
            for temperature, top_p in ((0.0, 1.0), (1.3, 0.9), (1.0, 1.0))
        ]
        driver.run()
        return [driver.sink.of(id).text for id in ids]

    alone = texts()
    monkeypatch.setattr("lmd.engine.drawers.DRAW_AHEAD_EFFORT", 0)
    assert texts() == alone
    assert len(set(alone)) > len(QUESTIONS)
