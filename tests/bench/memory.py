"""What lmd takes beside the model: the memory of all its processes less weights, KV cache and compute buffers.

    python -m tests.bench.memory [--model qwen2-0.5b] [--write docs/benchmarks.md]

Counted is PSS: pages that several processes share are told once, each process its part. The model has served full
batches before, so that its buffers are in memory; they are taken off in the sizes that llama.cpp tells, the weights
in the file's pages that are there. The store for prefixes that left the KV cache ([models] prompt_cache) is off.
"""

import argparse
import asyncio
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import psutil

from lmd.loading import LoadParams
from lmd.worker.messages import Load as LoadModel
from lmd.worker.process import WorkerProcess
from tests.bench.daemon import lmd
from tests.bench.load import Load, run
from tests.bench.machine import machine, versions
from tests.bench.report import put_block
from tests.bench.server import START_SECONDS, Server, ServerFailed, Setup, run_until_signalled
from tests.bench.stream import RequestFailed
from tests.models.gguf_model import QuantName
from tests.models.random_model import NAMED, cached

TARGET = 150 * 2**20
PROMPT_TOKENS = 600
"""More than a batch."""

_WAITS = re.compile(r"worker (\d+) waits for a model")
_BUFFER = re.compile(r"(\S+) +(KV|RS|compute|output|model) buffer size *= *([0-9.]+) MiB")


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes (PSS) of each of lmd's processes; of the worker that holds the model, what is not the model's."""

    daemon: int
    worker: int
    standby: int
    weights: int
    """Taken off: the file's pages in memory."""
    buffers: int
    """Taken off: KV cache, compute buffers, and weights that llama.cpp copied into another order."""

    @property
    def total(self) -> int:
        return self.daemon + self.worker + self.standby


class _Sizes(logging.Handler):
    """Collects the buffers that a worker's llama.cpp tells in its log."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.bytes = 0

    def emit(self, record: logging.LogRecord) -> None:
        found = _BUFFER.search(record.getMessage())
        if found and not found[1].endswith("_Mapped"):
            self.bytes += int(float(found[3]) * 2**20)


async def buffers_of(setup: Setup) -> int:
    """Bytes that a load of this kind allocates besides the mapped file, found by doing it once."""
    sizes, log = _Sizes(), logging.getLogger("lmd.worker")
    level, log.propagate = log.level, False
    log.addHandler(sizes)
    log.setLevel(logging.DEBUG)
    worker = await WorkerProcess.spawn()
    try:
        params = LoadParams(context_length=setup.n_ctx, parallel=setup.parallel, threads=setup.threads)
        await worker.load(LoadModel(str(setup.models[0]), params), lambda _: None, START_SECONDS)
    finally:
        await worker.stop(1.0)
        log.removeHandler(sizes)
        log.setLevel(level)
        log.propagate = True
    if not sizes.bytes:
        raise ServerFailed("llama.cpp told no buffer in its log: has it changed its words?")
    return sizes.bytes


async def measure(setup: Setup) -> Footprint:
    """Serve full batches on a fresh daemon, wait for the next standby worker, and look."""
    buffers = await buffers_of(setup)
    with TemporaryDirectory(prefix="lmd-memory-") as folder:
        log = Path(folder, "log")
        async with lmd(setup, ["-o", "models.prompt_cache=0", "-o", "log.level=debug"], log) as server:
            load = Load(clients=setup.parallel, prompt_tokens=PROMPT_TOKENS, max_tokens=16, turns=1)
            await run(server.url, server.model, load)
            worker, standby = await _workers(server, setup.models[0], log)
            weights = _file_bytes(worker, setup.models[0])
            return Footprint(
                daemon=_pss(psutil.Process(server.pid)),
                worker=_pss(worker) - weights - buffers,
                standby=_pss(standby),
                weights=weights,
                buffers=buffers,
            )


async def _workers(server: Server, model: Path, log: Path) -> tuple[psutil.Process, psutil.Process]:
    """The worker that has the model, and the one that waits: it has said so, with its backend started."""
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        children = psutil.Process(server.pid).children(recursive=True)
        holding = [child for child in children if _file_bytes(child, model)]
        told = {int(pid) for pid in _WAITS.findall(log.read_text(errors="replace"))}
        waiting = [child for child in children if child not in holding and child.pid in told]
        if len(children) == 2 and holding and waiting:
            return holding[0], waiting[0]
        await asyncio.sleep(0.1)
    raise ServerFailed("There never were a worker with the model and one on standby.")


def _file_bytes(process: psutil.Process, path: Path) -> int:
    """Bytes (PSS) of the file's pages that ``process`` has mapped."""
    name = str(path.resolve())
    return sum(int(one.pss) for one in process.memory_maps() if Path(one.path).resolve() == Path(name))


def _pss(process: psutil.Process) -> int:
    return int(process.memory_full_info().pss)


def report(found: Footprint, model: str) -> str:
    verdict = "" if found.total <= TARGET else " **missed**"
    rows = (
        ("daemon", found.daemon),
        ("worker, without the model", found.worker),
        ("standby worker", found.standby),
    )
    lines = [f"| memory (PSS) with {model}, beside weights, KV cache and compute buffers | lmd | target |"]
    lines += ["|---|---:|---|", *(f"| {what} | {_mib(size)} | |" for what, size in rows)]
    lines.append(f"| all of lmd | {_mib(found.total)} | ≤ {_mib(TARGET)}{verdict} |")
    return "\n".join(lines)


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.memory", description="What lmd takes beside a model.")
    parser.add_argument("--model", choices=sorted(NAMED), default="qwen2-0.5b")
    parser.add_argument("--quantization", choices=get_args(QuantName), default="Q8_0")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--write", type=Path, help="put the table into this Markdown file")
    given = parser.parse_args(argv)
    try:
        run_until_signalled(_run(given))
    except (RequestFailed, ServerFailed) as exc:
        raise SystemExit(f"memory: {exc}") from exc


async def _run(given: argparse.Namespace) -> None:
    model = replace(NAMED[given.model], quantization=given.quantization)
    setup = Setup(models=(cached(model),), threads=given.threads, parallel=given.parallel, n_ctx=2048)
    found = await measure(setup)
    name = f"{model.name} {model.quantization}"
    text = (
        f"{report(found, name)}\n\n{datetime.now(UTC):%Y-%m-%d}, {setup.parallel} sequences of {setup.n_ctx} tokens;"
        f" taken off: {_mib(found.weights)} of mapped weights, {_mib(found.buffers)} of buffers;"
        f" {machine()}; {versions()}."
    )
    print(text)
    if given.write:
        given.write.write_text(put_block(given.write.read_text(), f"memory {name}", text))
    if found.worker < 0:
        print("the buffers were not all in memory: what was taken off is too much", file=sys.stderr)


if __name__ == "__main__":
    main()
