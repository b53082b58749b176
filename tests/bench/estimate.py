"""How well the memory of a load is known before it: `lmd.pool.memory.estimate` beside what a worker really takes.

    nice python -m tests.bench.estimate --write docs/reliability.md

For each shape and load: a worker process, its resident memory before the load, and after it and a long prompt, so that
the weights and the buffers of a whole batch have been used. Exits with 1 where an estimate is off by more than a tenth.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import psutil

from lmd.generation import SamplingParams
from lmd.library.gguf import read_header
from lmd.loading import LoadParams
from lmd.pool.memory import PROCESS_BYTES, estimate
from lmd.worker.messages import Finished, Generate, Load, PromptTokens
from lmd.worker.process import WorkerProcess
from tests.bench.endurance import write_block
from tests.bench.machine import machine, versions
from tests.models.gguf_model import QuantName
from tests.models.random_model import NAMED, cached

TOLERANCE = 0.10
PROMPT_TOKENS = 1100
"""More than two batches."""


@dataclass(frozen=True, slots=True)
class Case:
    shape: str
    """One of `NAMED`."""
    quantization: QuantName
    load: LoadParams


CASES = (
    Case("qwen2-0.5b", "Q8_0", LoadParams(context_length=4096, parallel=1)),
    Case("qwen2-0.5b", "Q8_0", LoadParams(context_length=4096, parallel=4)),
    Case("qwen2-0.5b", "Q8_0", LoadParams(context_length=16384, parallel=2)),
    Case("qwen2-0.5b", "Q8_0", LoadParams(context_length=8192, parallel=1, kv_cache_type="q8_0")),
    Case("qwen2-0.5b", "Q8_0", LoadParams(context_length=4096, parallel=2, batch=256)),
    Case("qwen2-1.5b", "Q8_0", LoadParams(context_length=4096, parallel=4)),
)


@dataclass(frozen=True, slots=True)
class Measured:
    case: Case
    estimated: int
    """Bytes, without the process itself."""
    grown: int

    @property
    def error(self) -> float:
        """0.05: the estimate is 5 % too large."""
        return self.estimated / self.grown - 1


async def measure(case: Case) -> Measured:
    path = await asyncio.to_thread(cached, replace(NAMED[case.shape], quantization=case.quantization))
    header = read_header(path)
    need = estimate(header, case.load)
    worker = await WorkerProcess.spawn()
    try:
        process = psutil.Process(worker.pid)
        before = process.memory_info().rss
        loaded = await worker.load(Load(str(path), case.load), lambda _: None, timeout=600)
        # The KV cache is written at the load already, and longer prompts use the same buffers again.
        tokens = [1000 + n % 1000 for n in range(min(PROMPT_TOKENS, loaded.context_length - 8))]
        answer = worker.generate(Generate(0, [PromptTokens(tokens)], SamplingParams(max_tokens=4), add_special=False))
        async for item in answer:
            if isinstance(item, Finished):
                break
        return Measured(case, need.full.total - PROCESS_BYTES, process.memory_info().rss - before)
    finally:
        await worker.stop(0)


def described(rows: Sequence[Measured]) -> str:
    lines = ["| model | load | estimated | measured | off by |", "|---|---|---:|---:|---:|"]
    for row in rows:
        load = ", ".join(f"{key} {value}" for key, value in _said(row.case.load))
        verdict = "" if abs(row.error) <= TOLERANCE else " **missed**"
        name = f"{row.case.shape} {row.case.quantization}"
        lines.append(f"| {name} | {load} | {_mib(row.estimated)} | {_mib(row.grown)} | {row.error:+.1%}{verdict} |")
    where = f"{datetime.now(UTC):%Y-%m-%d}; random weights; {machine()}; {versions()}."
    return "\n".join(lines) + f"\n\n{where}"


def _said(load: LoadParams) -> list[tuple[str, object]]:
    said = ((field.name, getattr(load, field.name)) for field in fields(load))
    return [(name, value) for name, value in said if value not in {None, ()}]


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f} MiB"


async def _measure_all(cases: Sequence[Case]) -> list[Measured]:
    return [await measure(case) for case in cases]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.estimate", description="Estimates beside reality.")
    parser.add_argument("--shape", choices=sorted(NAMED), action="append", help="only this shape; may be repeated")
    parser.add_argument("--write", type=Path, help="put the table into this Markdown file")
    given = parser.parse_args(argv)
    rows = asyncio.run(_measure_all([case for case in CASES if not given.shape or case.shape in given.shape]))
    text = described(rows)
    print(text)
    if given.write:
        write_block(given.write, "estimates", text)
    if any(abs(row.error) > TOLERANCE for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
