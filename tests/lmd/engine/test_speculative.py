import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd.engine.instance import EngineInstance
from lmd.engine.llama import Backend, Model
from lmd.engine.payoff import Speculation
from lmd.engine.speculative import LOOSE, TOP, PromptLookup, Wish, check_vocabularies
from lmd.errors import InvalidRequest
from lmd.loading import LoadParams
from lmd.worker.messages import Constraint
from tests.lmd.engine.driver import TINY, Driver, chat

Make = Callable[..., Driver]
DRAFT = TINY.with_name("tiny-draft.gguf")
REPEAT = "Repeat after me: red blue green red blue green red blue"
KINDS = ["off", "auto", "prompt-lookup"]
QUESTIONS = ["Count to 40.", "Tell me a story about Eva in Delhi.", REPEAT, "What is 7 + 8?", "Hello"]


@pytest.fixture
def drafting(make: Make, monkeypatch: Any) -> Driver:
    """An engine with the draft model, which drafts whether it pays or not."""
    monkeypatch.setattr(Speculation, "length", lambda self, level, most, *rest: min(most, 6))
    return make(draft_path=str(DRAFT), parallel=4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("question", QUESTIONS)
def test_greedy_text_is_the_same_with_every_drafter(drafting: Driver, kind: str, question: str) -> None:
    plain = drafting.ask(chat(question), raw={"draft": "off"})
    drafted = drafting.ask(chat(question), raw={"draft": kind})
    assert drafted.text == plain.text
    assert drafted.reason == plain.reason
    assert drafted.usage.completion_tokens == plain.usage.completion_tokens


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31))
def test_a_seed_gives_the_same_text_with_and_without_drafts(drafting: Driver, seed: int) -> None:
    kw: dict[str, Any] = {"temperature": 1.2, "seed": seed, "max_tokens": 60}
    texts = {drafting.ask(chat("Count to 40."), raw={"draft": kind}, **kw).text for kind in KINDS}
    assert len(texts) == 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31))
def test_drafts_beside_other_streams_disturb_nobody(drafting: Driver, seed: int) -> None:
    rng = random.Random(seed)
    alone = {question: drafting.ask(chat(question), raw={"draft": "off"}).text for question in QUESTIONS}
    ids = {}
    for _ in range(8):
        question = rng.choice(QUESTIONS)
        ids[drafting.submit(chat(question), raw={"draft": rng.choice(KINDS)})] = question
        for _ in range(rng.randrange(6)):
            drafting.engine.step()
    drafting.run()
    assert all(drafting.sink.of(id).text == alone[question] for id, question in ids.items())


def test_counts_are_true(drafting: Driver) -> None:
    for kind in ("auto", "prompt-lookup"):
        usage = drafting.ask(chat("Count to 40."), raw={"draft": kind}).usage
        assert usage.drafted_tokens >= usage.accepted_tokens + usage.ignored_draft_tokens
        assert 0 < usage.accepted_tokens < usage.completion_tokens
    usage = drafting.ask(chat("Count to 40."), raw={"draft": "off"}).usage
    assert (usage.drafted_tokens, usage.accepted_tokens, usage.ignored_draft_tokens) == (0, 0, 0)


def test_what_repeats_takes_fewer_steps(make: Make, monkeypatch: Any) -> None:
    monkeypatch.setattr(Speculation, "length", lambda self, level, most, *rest: min(most, 8))
    driver = make(draft_model="prompt-lookup")
    prompt = chat("Say: apple river stone cloud forest") + "apple river stone cloud forest apple river stone"

    def steps(kind: str) -> int:
        driver.submit(prompt, max_tokens=60, raw={"draft": kind, "ignore_eos": True})
        n = 0
        while driver.engine.busy:
            driver.engine.step()
            n += 1
        return n

    assert steps("auto") < 0.85 * steps("off")


def test_stop_strings_and_logprobs_hold_inside_a_draft(drafting: Driver) -> None:
    for kind in KINDS:
        answer = drafting.ask(chat("Count to 40."), stop=("17, 18",), raw={"draft": kind, "logprobs": 2})
        assert answer.text.endswith("16, ")
        assert answer.stop == "17, 18"
        assert len(answer.logprobs) == answer.usage.completion_tokens
        assert all(entry.top[0][0] == entry.token for entry in answer.logprobs)


def test_drafts_stay_within_max_tokens(drafting: Driver) -> None:
    for n in range(1, 12):
        answer = drafting.ask(chat("Count to 40."), max_tokens=n)
        assert answer.usage.completion_tokens == n


def test_drafts_obey_the_grammar(drafting: Driver) -> None:
    schema = {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 4, "maxItems": 6}
    texts = set()
    for kind in KINDS:
        raw = {"draft": kind, "constraint": Constraint("json_schema", json.dumps(schema))}
        texts.add(drafting.ask(chat(REPEAT), raw=raw).text)
    assert len(texts) == 1
    assert set(json.loads(texts.pop())) <= {"red", "blue"}


def test_a_draft_model_of_another_vocabulary_is_refused(backend: Backend, tmp_path: Path) -> None:
    import gguf

    reader = gguf.GGUFReader(TINY)
    other = tmp_path / "other.gguf"
    data = bytearray(TINY.read_bytes())
    # One token spelled differently is enough: the last one, whose text is found in the file's vocabulary.
    field = reader.fields["tokenizer.ggml.tokens"]
    text = bytes(field.parts[field.data[-1]])
    at = data.find(text)
    while data.count(text) > 1 and at >= 0 and at < field.offset:
        at = data.find(text, at + 1)
    data[at : at + len(text)] = bytes(reversed(text)) if text[::-1] != text else b"#" * len(text)
    other.write_bytes(data)
    target = Model(backend, str(TINY), LoadParams())
    draft = Model(backend, str(other), LoadParams())
    with pytest.raises(InvalidRequest, match="vocabulary does not match"):
        check_vocabularies(target, draft)
    check_vocabularies(target, Model(backend, str(DRAFT), LoadParams()))


def test_an_instance_frees_its_draft_model(backend: Backend) -> None:
    from tests.lmd.engine.driver import Recorder

    EngineInstance(backend, str(TINY), LoadParams(context_length=64), Recorder(), draft_path=str(DRAFT)).close()


def naive_guess(tokens: list[int]) -> tuple[int, int]:
    """Where what follows stood the last time, and the guess's level; (0, 0): nowhere."""
    n = len(tokens)
    for size in (4, 3, 2, 1):
        for end in range(n - 1, size - 1, -1):
            if n >= size and tokens[end - size : end] == tokens[-size:]:
                return end, next(m for m in range(TOP, 0, -1) if m <= end and tokens[end - m : end] == tokens[-m:])
    return next((end for end in range(n - 1, 1, -1) if tokens[end - 2] == tokens[-2]), 0), LOOSE


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 8), st.integers(1, 5))
def test_lookup_finds_the_last_place_where_the_same_tokens_stood(tokens: list[int], limit: int, stride: int) -> None:
    lookup = PromptLookup()
    for n in range(1, len(tokens) + 1, stride):
        guess = lookup.draft([Wish(7, tokens[:n], limit)])[7]
        at, level = naive_guess(tokens[:n])
        if not at:
            assert guess.tokens == []
        else:
            followed = tokens[at:n]
            assert guess.tokens == (followed * limit)[:limit]
            assert guess.level == level
    lookup.forget(7)
    assert lookup.draft([Wish(7, [1], 4)])[7].tokens == []


def test_lookup_guesses_what_stands_after_a_new_value() -> None:
    tokens = [10, 1, 11, 10, 2, 11, 10, 3]
    assert PromptLookup().draft([Wish(1, tokens, 2)])[1] == ([11, 10], LOOSE)


def test_lookup_starts_anew_when_half_of_the_context_is_cut_out() -> None:
    lookup = PromptLookup()
    lookup.draft([Wish(1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2], 2)])
    assert lookup.draft([Wish(1, [8, 9, 1, 8, 9], 1)])[1].tokens == [1]


def test_guesses_that_are_not_verified_are_judged_too_and_not_counted(make: Make, monkeypatch: Any) -> None:
    seen: list[tuple[int, list[float]]] = []

    def length(self: Speculation, level: int, *rest: Any) -> int:
        seen.append((level, list(self._right)))
        return 0

    monkeypatch.setattr(Speculation, "length", length)
    driver = make(draft_model="prompt-lookup")
    usage = driver.ask(chat("Count to 40.")).usage
    assert (usage.drafted_tokens, usage.accepted_tokens, usage.ignored_draft_tokens) == (0, 0, 0)
    first, last = seen[0][1], seen[-1][1]
    assert last[LOOSE] > 0.8 > first[LOOSE]  # a comma after each number
