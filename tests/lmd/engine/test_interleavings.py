"""At temperature 0 a request's text is its own, whatever else is in the batch, is reused or is guessed ahead."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd.engine import slots
from lmd.engine.payoff import Speculation
from lmd.generation import FinishReason
from tests.lmd.engine.driver import TINY, Driver, chat

#: What the model is sure of, with either system prompt: its two best tokens are always 0.1 or more apart (natural
#: logarithm). The last bits, which do depend on the batch, make 0.005, and so decide nothing, on whatever machine.
QUESTIONS = (
    "Count to 30.",
    "Count to 23.",
    "Repeat after me: stone cloud river stone cloud river stone",
    "What is 7 + 8?",
    "Give JSON for Leo, age 33, from Madrid.",
    "My name is Grace.",
)
SYSTEMS = ("", "Be brief, please. " * 8)
ANSWER_TOKENS = 120


@dataclass(frozen=True, slots=True)
class Request:
    """What decides the text."""

    prompt: str
    stop: tuple[str, ...]
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Way:
    """What must not."""

    draft: str
    cache: bool
    steps_before_the_next: int
    cancelled: bool


REQUESTS = st.builds(
    Request,
    prompt=st.builds(chat, st.sampled_from(QUESTIONS), st.sampled_from(SYSTEMS)),
    stop=st.sampled_from([(), ("17, 18",), ("river stone",)]),
    max_tokens=st.sampled_from([1, 7, ANSWER_TOKENS]),
)
WAYS = st.builds(
    Way,
    draft=st.sampled_from(["off", "auto", "prompt-lookup"]),
    cache=st.booleans(),
    steps_before_the_next=st.integers(0, 12),
    cancelled=st.sampled_from([False, False, False, True]),
)


def submit(driver: Driver, request: Request, *, draft: str, cache: bool) -> int:
    return driver.submit(
        request.prompt,
        max_tokens=request.max_tokens,
        stop=request.stop,
        raw={"draft": draft, "cache_prompt": cache},
    )


def outcome(driver: Driver, id: int) -> tuple[str, FinishReason | None, str | None, int]:
    answer = driver.sink.of(id)
    assert answer.error is None
    return answer.text, answer.reason, answer.stop, answer.usage.completion_tokens


@pytest.fixture
def alone(make: Callable[..., Driver]) -> Callable[[Request], Any]:
    """The request by itself: nothing reused, nothing guessed. Each is asked once."""
    driver, known = make(parallel=1), dict[Request, Any]()

    def ask(request: Request) -> Any:
        if request not in known:
            id = submit(driver, request, draft="off", cache=False)
            driver.run()
            known[request] = outcome(driver, id)
        return known[request]

    return ask


@pytest.fixture(params=["pool", "streams"])
def crowded(make: Callable[..., Driver], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Driver:
    """Few cells, small batches, a store in RAM, and a draft model that drafts whether it pays or not."""
    monkeypatch.setattr(Speculation, "length", lambda self, level, most, *rest: min(most, 5))
    monkeypatch.setattr(slots, "SHARE_GAIN", 4)
    draft = str(TINY.with_name("tiny-draft.gguf"))
    cells = {"kv_cells": 768} if request.param == "pool" else {}
    driver = make(context_length=512, parallel=4, batch=64, draft_path=draft, prompt_cache=2**22, **cells)
    assert driver.instance._context.streams == (request.param == "streams")
    return driver


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(REQUESTS, WAYS), min_size=1, max_size=10), st.randoms(use_true_random=False))
def test_greedy_text_is_its_own_in_any_interleaving(
    crowded: Driver, alone: Callable[[Request], Any], orders: list[tuple[Request, Way]], rng: random.Random
) -> None:
    pending: dict[int, Request] = {}
    for request, way in orders:
        id = submit(crowded, request, draft=way.draft, cache=way.cache)
        pending[id] = request
        for _ in range(way.steps_before_the_next):
            crowded.engine.step()
        if way.cancelled:
            gone = rng.choice(sorted(pending))
            crowded.engine.cancel(gone)
            del pending[gone]
    crowded.run()
    for id, request in pending.items():
        assert outcome(crowded, id) == alone(request)
