"""Models that remember otherwise than by a plain KV cache reuse what they truthfully can, and say the same with it."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd.generation import FinishReason, TokenLogprob
from tests.lmd.engine.driver import TINY, Driver
from tests.models.gguf_model import Vocabulary
from tests.models.memory_model import KINDS, WINDOW, MemoryKind, write_memory_model

#: Without rounding in the cache, so that a different batch changes the last bits only.
EXACT: dict[str, Any] = {"kv_cache_type": "f32", "flash_attention": False}
COLD: dict[str, Any] = {"cache_prompt": False, "ignore_eos": True}
WARM: dict[str, Any] = {"cache_prompt": True, "ignore_eos": True}
N_TOKENS = 12

NEAR_TIE = 1e-3
"""Log probabilities so close are decided by last bits, which do depend on the batch: random models are seldom sure."""

MakeOf = Callable[..., Driver]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[MemoryKind, Path]:
    folder, vocabulary = tmp_path_factory.mktemp("memories"), Vocabulary.from_gguf(TINY)
    return {kind: write_memory_model(folder / f"{kind}.gguf", kind, vocabulary) for kind in KINDS}


@pytest.fixture
def make_of(make: Callable[..., Driver], models: dict[MemoryKind, Path]) -> MakeOf:
    return lambda kind, **params: make(path=models[kind], **{**EXACT, "batch": 64, "parallel": 4, **params})


def prompt(seed: object, n: int) -> list[int]:
    """``n`` tokens; a longer one with the same seed begins with a shorter one."""
    rng = random.Random(f"{seed}")
    return [rng.randrange(300, 1000) for _ in range(n)]


def said(driver: Driver, id: int) -> list[str]:
    answer = driver.sink.of(id)
    assert answer.reason is FinishReason.LENGTH
    return answer.pieces


def cold(driver: Driver, tokens: list[int]) -> list[str]:
    id = driver.submit(tokens, max_tokens=N_TOKENS, raw=COLD)
    driver.run()
    return said(driver, id)


def warm(driver: Driver, tokens: list[int]) -> tuple[list[str], int]:
    """What is said, and how many tokens were reused."""
    id = driver.submit(tokens, max_tokens=N_TOKENS, raw=WARM)
    driver.run()
    return said(driver, id), driver.sink.of(id).usage.cached_tokens


def doubt(answer: list[TokenLogprob], expected: list[TokenLogprob]) -> float:
    """By how much what was expected led over the next best, where the answer first differs from it; 0: nowhere."""
    pairs = zip(answer, expected, strict=True)
    return next((due.top[0][2] - due.top[1][2] for one, due in pairs if one.token != due.token), 0.0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_said_depends_on_all_that_was_told(make_of: MakeOf, kind: MemoryKind) -> None:
    driver = make_of(kind)
    tokens = prompt("a", 60)
    # Without this no reuse that is wrong would show in the tests below.
    texts = {tuple(cold(driver, [*tokens[:at], 300 + at, *tokens[at + 1 :]])) for at in (0, 20, 40, 50, 58)}
    assert len(texts) >= 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_next_turn_goes_on_from_the_whole_last_one(make_of: MakeOf, kind: MemoryKind) -> None:
    driver = make_of(kind)
    first = prompt("first", 100)
    answer = [token.token for token in _tokens(driver, first)]
    # The last token generated was never computed: the memory ends before it.
    turn = [*first, *answer, *prompt("second", 30)]
    text, reused = warm(driver, turn)
    assert reused == len(first) + len(answer) - 1
    assert text == cold(driver, turn)


def _tokens(driver: Driver, tokens: list[int]) -> Any:
    id = driver.submit(tokens, max_tokens=N_TOKENS, raw={**WARM, "logprobs": 0})
    driver.run()
    return driver.sink.of(id).logprobs


@pytest.mark.parametrize("kind", KINDS)
def test_a_beginning_that_is_shared_is_reused_where_the_memory_can_be_cut(make_of: MakeOf, kind: MemoryKind) -> None:
    driver = make_of(kind)
    warm(driver, [*prompt("system", 80), *prompt("x", 20)])
    other = [*prompt("system", 80), *prompt("y", 20)]
    text, reused = warm(driver, other)
    assert reused == (80 if kind == "sliding" else 0)
    assert text == cold(driver, other)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_that_come_together_compute_what_they_share_once(make_of: MakeOf, kind: MemoryKind) -> None:
    driver = make_of(kind)
    system = prompt("system", 200)
    first = [*system, *prompt("first", 90)]
    # Parts from the first one at its end, early, at the end of the system prompt, and nowhere.
    prompts = [first, [*first, *prompt("more", 30)], [*system[:100], *prompt("early", 50)], [*system, *prompt("y", 70)]]
    expected = [cold(driver, tokens) for tokens in [*prompts, first]]
    driver = make_of(kind, parallel=5)
    ids = [driver.submit(tokens, max_tokens=N_TOKENS, raw=WARM) for tokens in [*prompts, first]]
    driver.run()
    assert [said(driver, id) for id in ids] == expected
    assert [driver.sink.of(id).usage.cached_tokens for id in ids] == [0, len(first), 100, len(system), len(first) - 1]


def test_a_sliding_window_is_whole_after_a_cut_within_it(make_of: MakeOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmd.engine.slots.SHARE_GAIN", 1)
    driver = make_of("sliding")
    warm(driver, prompt("long", 200))
    for n in (200 - WINDOW // 2, 200 - WINDOW, WINDOW + 1, WINDOW // 2):  # each cut shortens what is left
        other = [*prompt("long", n), *prompt(n, 10)]
        text, reused = warm(driver, other)
        assert reused == n
        assert text == cold(driver, other)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_prompt_again_is_answered_the_same(make_of: MakeOf, kind: MemoryKind) -> None:
    driver = make_of(kind)
    tokens = prompt("again", 70)
    expected = cold(driver, tokens)
    assert [warm(driver, tokens)[0] for _ in range(3)] == [expected] * 3


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_stored_in_ram_comes_back(make_of: MakeOf, kind: MemoryKind) -> None:
    driver = make_of(kind, parallel=1, context_length=512, prompt_cache=2**24)
    first = prompt("first", 150)
    answer = [token.token for token in _tokens(driver, first)]
    for n in range(6):
        warm(driver, prompt(f"other {n}", 400))
    turn = [*first, *answer, *prompt("second", 30)]
    text, reused = warm(driver, turn)
    assert reused >= len(first)
    assert text == cold(driver, turn)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
@pytest.mark.parametrize("kind", ["recurrent", "hybrid", "sliding"])
def test_random_requests_beside_each_other_say_what_each_says_alone(
    make_of: MakeOf, kind: MemoryKind, seed: int
) -> None:
    driver = make_of(kind, kv_cells=1200, context_length=400)
    rng = random.Random(seed)
    pending: dict[int, list[int]] = {}
    for _ in range(10):
        tokens = [*prompt(rng.randrange(2), rng.choice([0, 40, 80, 120])), *prompt(rng.random(), rng.randrange(1, 40))]
        if pending and rng.random() < 0.4:  # goes on from an earlier one
            tokens = [*rng.choice(list(pending.values())), *prompt(rng.random(), rng.randrange(1, 20))]
        id = driver.submit(tokens[:300], max_tokens=N_TOKENS, raw={**rng.choice([WARM, WARM, COLD]), "logprobs": 2})
        pending[id] = tokens[:300]
        for _ in range(rng.randrange(12)):
            driver.engine.step()
        if rng.random() < 0.1:
            driver.engine.cancel(id)
            del pending[id]
    driver.run()
    for id, tokens in pending.items():
        alone = driver.submit(tokens, max_tokens=N_TOKENS, raw={**COLD, "logprobs": 2})
        driver.run()
        assert doubt(driver.sink.of(id).logprobs, driver.sink.of(alone).logprobs) < NEAR_TIE
