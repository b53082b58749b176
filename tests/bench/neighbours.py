"""Two instances that compute at once: each with all cores against each with its part of them (`lmd.pool.cores`).

    python -m tests.bench.neighbours [--rounds 3] [--write docs/benchmarks.md]

Each is an engine in a process of its own, as in two workers; no HTTP. Figures are the sum of both.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from lmd.engine.instance import EngineInstance
from lmd.engine.llama import Backend
from lmd.generation import SamplingParams, TokenLogprob
from lmd.loading import LoadParams
from lmd.worker.messages import Generate
from tests.bench.decoding import Counter
from tests.bench.machine import busy, machine, versions
from tests.bench.report import put_block
from tests.models.random_model import NAMED, cached

CHILD = (sys.executable, "-m", "tests.bench.neighbours", "--child")


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    title: str
    streams: int
    prompt: int
    out: int
    """Tokens of each request."""


CASES = (
    Case(title="one stream each", streams=1, prompt=16, out=200),
    Case(title="4 streams each", streams=4, prompt=16, out=200),
    Case(title="prompts of 64 tokens, one after the other", streams=1, prompt=64, out=1),
)


class Tokens(Counter):
    """Counts those of prompts too."""

    def prefilled(self, id: int, done: int, total: int, logprobs: list[TokenLogprob] | None = None) -> None:
        self.tokens += total if done == total else 0


def work(path: Path) -> None:
    """A neighbour: for each line of JSON on stdin, works so many seconds and prints tokens/s."""
    sink = Tokens()
    instance = EngineInstance(Backend(), str(path), LoadParams(context_length=2048, parallel=4), sink)
    engine, rng, id = instance.engine, random.Random(os.getpid()), 0
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        instance.share_cores(order["n_busy"])
        sampling = SamplingParams(temperature=0.0, max_tokens=order["out"])
        sink.tokens, began = 0, time.perf_counter()
        while time.perf_counter() - began < order["seconds"]:
            while engine.n_running + engine.n_queued < order["streams"]:
                id += 1
                prompt = [rng.randrange(1000, 30_000) for _ in range(order["prompt"])]
                instance.submit(id, [prompt], Generate(id, [], sampling, ignore_eos=True, cache_prompt=False))
            engine.step()
        rate = sink.tokens / (time.perf_counter() - began)
        for old in range(id + 1):
            instance.cancel(old)
        print(rate, flush=True)


def rates(neighbours: Sequence["subprocess.Popen[str]"], case: Case, n_busy: int, seconds: float) -> float:
    """Tokens/s, the sum of those that work."""
    order: dict[str, Any] = {"streams": case.streams, "prompt": case.prompt, "out": case.out}
    for one in neighbours:
        assert one.stdin is not None
        one.stdin.write(json.dumps({**order, "n_busy": n_busy, "seconds": seconds}) + "\n")
        one.stdin.flush()
    return sum(float(one.stdout.readline()) for one in neighbours if one.stdout is not None)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.neighbours", description="Two instances at once.")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--write", type=Path, help="put the table into this Markdown file")
    given = parser.parse_args(argv)
    path = cached(replace(NAMED["qwen2-0.5b"], quantization="Q8_0"))
    if given.child:
        work(path)
        return
    if busy() > 0.5:
        print("the machine is not idle: the figures will be of little worth", file=sys.stderr)
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    both = [subprocess.Popen(CHILD, stdin=pipe, stdout=pipe, stderr=quiet, text=True) for _ in range(2)]
    for one in both:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    lines = [
        "| two busy instances, tokens/s of both | one alone | all cores each | shared | ratio |",
        "|---|---:|---:|---:|---:|",
    ]
    for case in CASES:
        alone, plain, shared = [], [], []
        for _ in range(given.rounds):
            alone.append(rates(both[:1], case, 1, given.seconds))
            plain.append(rates(both, case, 1, given.seconds))
            shared.append(rates(both, case, 2, given.seconds))
        cells = [f"{median(alone):.1f}", f"{median(plain):.1f}", f"{median(shared):.1f}"]
        lines.append(f"| {case.title} | {' | '.join(cells)} | {median(shared) / median(plain):.2f} |")
    for one in both:
        one.communicate()
    text = "\n".join(lines) + f"\n\n{datetime.now(UTC):%Y-%m-%d}, qwen2-0.5b Q8_0, {given.seconds:g} s each, "
    text += f"medians of {given.rounds}; {machine()}; {versions()}."
    print(text)
    if given.write:
        given.write.write_text(put_block(given.write.read_text(), "neighbours", text))


if __name__ == "__main__":
    main()
