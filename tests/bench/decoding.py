"""What constraints and guessing ahead cost and gain: the engine against itself, in its own process, no HTTP.

    python -m tests.bench.decoding [--rounds 3] [--write docs/benchmarks.md]

Each figure is lmd's tokens/s with a feature over its tokens/s without it, on the same model in the same run, in turn.
"""

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from lmd.engine.instance import EngineInstance
from lmd.engine.llama import Backend
from lmd.errors import LmdError
from lmd.generation import FinishReason, SamplingParams, TokenLogprob, Usage
from lmd.loading import PROMPT_LOOKUP, LoadParams
from lmd.worker.messages import Constraint, Generate
from tests.bench.machine import busy, machine, versions
from tests.bench.report import put_block
from tests.models.random_model import NAMED, cached

TINY = Path(__file__).parents[1] / "models" / "tiny-chat.gguf"
TOKENS = 64

#: One long string: all but quotes, backslashes and control characters may follow, so every step needs a whole mask.
STRING = {"type": "object", "properties": {"text": {"type": "string", "minLength": 100_000}}, "required": ["text"]}
#: Four long keys with values from short lists: nearly all of its tokens are forced.
FORCED = {
    "type": "object",
    "properties": {
        "preferred_shipping_method_for_this_order": {"enum": ["standard delivery", "express delivery"]},
        "customer_satisfaction_level_after_delivery": {"enum": ["very satisfied", "not satisfied"]},
        "recommended_follow_up_action_for_support": {"enum": ["send a thank you note", "call the customer"]},
        "estimated_probability_of_another_purchase": {"enum": ["rather high", "rather low"]},
    },
    "additionalProperties": False,
}
FORCED["required"] = list(FORCED["properties"])  # type: ignore[call-overload]


class Counter:
    """A sink that counts tokens and keeps the time of the first."""

    def __init__(self) -> None:
        self.tokens = 0
        self.began = 0.0

    def output(self, id: int, text: str, n_tokens: int, logprobs: list[TokenLogprob] | None) -> None:
        self.began = self.began or time.perf_counter()
        self.tokens += n_tokens

    def prefilled(self, id: int, done: int, total: int, logprobs: list[TokenLogprob] | None = None) -> None: ...

    def finished(self, id: int, reason: FinishReason, usage: Usage, text: str, stop: str | None) -> None: ...

    def failed(self, id: int, error: LmdError) -> None:
        raise error


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of the table: ``with_`` against ``without`` at ``streams`` streams."""

    title: str
    streams: int
    target: float
    with_: dict[str, Any]
    without: dict[str, Any]
    model: str = "qwen2-0.5b"
    prompt: Callable[[random.Random], str] = lambda rng: " ".join(str(rng.randrange(1000)) for _ in range(30))
    many: int = 1
    """So many times as many rounds: one that takes some milliseconds is soon spoilt by an interruption."""


def say(rng: random.Random) -> str:
    words = " ".join(rng.choice(["red", "blue", "green", "gold", "apple", "river", "stone"]) for _ in range(12))
    return f"<|im_start|>user\nRepeat after me: {words}<|im_end|>\n<|im_start|>assistant\n"


def count_up(rng: random.Random) -> str:
    return f"<|im_start|>user\nCount to {rng.randrange(36, 41)}.<|im_end|>\n<|im_start|>assistant\n"


#: Rounds of the tiny model for each one of the others.
MANY = 21
FREE: dict[str, Any] = {"ignore_eos": True}
LOOKUP: dict[str, Any] = {"ignore_eos": True, "draft": PROMPT_LOOKUP}
#: A model with random weights never falls into a loop by itself: here one token is always the likeliest.
LOOPING: dict[str, Any] = {"logit_bias": {1000: 100.0}}


def bound(schema: dict[str, Any]) -> dict[str, Any]:
    return {"constraint": Constraint("json_schema", json.dumps(schema))}


CASES = (
    Case(title="masked (one long JSON string), 1 stream", streams=1, target=0.95, with_=bound(STRING), without=FREE),
    Case(title="masked (one long JSON string), 8 streams", streams=8, target=0.95, with_=bound(STRING), without=FREE),
    Case(title="forced (four long keys, enums), 1 stream", streams=1, target=2.0, with_=bound(FORCED), without=FREE),
    Case(
        title="prompt-lookup, text that loops (0.5 B)",
        streams=1,
        target=1.3,
        with_=LOOKUP | LOOPING,
        without=FREE | LOOPING,
    ),
    Case(
        title="prompt-lookup, `count` (tiny)",
        streams=1,
        target=1.3,
        with_={"draft": PROMPT_LOOKUP},
        without={},
        model="tiny",
        prompt=count_up,
        many=MANY,
    ),
    Case(
        title="prompt-lookup, `repeat` (tiny)",
        streams=1,
        target=1.3,
        with_={"draft": PROMPT_LOOKUP},
        without={},
        model="tiny",
        prompt=say,
        many=MANY,
    ),
    Case(
        title="prompt-lookup, text that does not repeat (0.5 B, temperature 1)",
        streams=1,
        target=0.97,
        with_=LOOKUP | {"sampling": {"temperature": 1.0}},
        without=FREE | {"sampling": {"temperature": 1.0}},
    ),
)


class Bench:
    """One loaded model, measured with one order of requests after another."""

    def __init__(self, backend: Backend, path: Path, threads: int, streams: int) -> None:
        self._sink = Counter()
        params = LoadParams(context_length=2048, parallel=streams, threads=threads)
        self._instance = EngineInstance(backend, str(path), params, self._sink)
        self._id = 0

    def rate(self, case: Case, order: dict[str, Any], seed: str) -> float:
        """Tokens/s from the first token on, all streams together: prompts and compiling are not in it."""
        rng = random.Random(seed)
        sampling = {"temperature": 0.0, "max_tokens": TOKENS, "seed": 1, **order.get("sampling", {})}
        rest = {key: value for key, value in order.items() if key != "sampling"}
        sink = self._sink
        sink.tokens, sink.began = 0, 0.0
        for _ in range(case.streams):
            self._id += 1
            message = Generate(self._id, [], SamplingParams(**sampling), cache_prompt=False, **rest)
            self._instance.submit(self._id, [(case.prompt(rng), True)], message)
        engine = self._instance.engine
        while self._instance.compiling or engine.busy:
            self._instance.collect()
            if self._instance.compiling:  # all begin together
                time.sleep(0.01)  # this thread must not take the interpreter from the one that compiles
            else:
                engine.step()
        first = case.streams  # the tokens of the step at which the clock began
        return (sink.tokens - first) / (time.perf_counter() - sink.began)

    def close(self) -> None:
        self._instance.close()


def measure(case: Case, rounds: int, threads: int) -> tuple[float, float]:
    """Medians of (without, with)."""
    backend = BACKEND[0]
    path = TINY if case.model == "tiny" else cached(replace(NAMED[case.model], quantization="Q8_0"))
    bench = Bench(backend, path, threads, case.streams)
    try:
        bench.rate(case, case.without, "warm-up")
        bench.rate(case, case.with_, "warm-up")
        plain, bound_ = [], []
        for number in range(rounds * case.many):
            plain.append(bench.rate(case, case.without, f"round {number}"))
            bound_.append(bench.rate(case, case.with_, f"round {number}"))
        return median(plain), median(bound_)
    finally:
        bench.close()


BACKEND: list[Backend] = []


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.decoding", description="What features cost and gain.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="cases whose title holds this")
    parser.add_argument("--write", type=Path, help="put the table into this Markdown file")
    given = parser.parse_args(argv)
    if busy() > 0.5:
        print("the machine is not idle: the figures will be of little worth", file=sys.stderr)
    log = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # llama.cpp's page about each model
    BACKEND.append(Backend())
    lines = ["| decoding, lmd against itself | without | with | ratio | target |", "|---|---:|---:|---:|---|"]
    for case in CASES:
        if given.only and given.only not in case.title:
            continue
        plain, with_ = measure(case, given.rounds, given.threads)
        verdict = "" if with_ / plain >= case.target else " **missed**"
        cells = f"{plain:.1f} tokens/s | {with_:.1f} tokens/s | {with_ / plain:.2f} | ≥ {case.target:.2f}{verdict}"
        lines.append(f"| {case.title} | {cells} |")
        os.write(log, f"{lines[-1]}\n".encode())
    text = "\n".join(lines) + f"\n\n{datetime.now(UTC):%Y-%m-%d}, {given.threads} threads, {TOKENS} tokens out, "
    text += f"medians of {given.rounds}; {machine()}; {versions()}."
    print(text)
    if given.write:
        given.write.write_text(put_block(given.write.read_text(), "decoding", text))


if __name__ == "__main__":
    main()
