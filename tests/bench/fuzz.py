"""Random and spoiled input for hours: does every reader of what others wrote hold?

    nice python -m tests.bench.fuzz --minutes 60 --write docs/reliability.md [--only gguf,channel] [--seed N]
    nice python -m tests.bench.fuzz --minutes 5 --totals FILE      one piece of many, each with other inputs

Inputs are right ones with bytes or members spoiled, and pure noise; hypothesis draws them and makes what fails small.
A target's time is split into rounds with a seed each, which are told with what they found: ``--seed`` draws the same
inputs again. Exits with 1 where anything was found.
"""

import argparse
import asyncio
import logging
import resource
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hypothesis
import msgspec
from hypothesis import HealthCheck, Phase, given, settings

from tests.bench.endurance import write_block
from tests.bench.fuzz_targets import Target, pure_targets
from tests.bench.fuzz_wire import cpu_seconds, fuzzed_daemon, hub, wire_targets
from tests.bench.machine import machine, versions
from tests.bench.server import run_until_signalled
from tests.bench.supervised import Supervised

NAMES = ("gguf", "channel", "worker", "bodies", "http", "control")
ROUND_EXAMPLES = 300
MEMORY = 8 << 30
"""Bytes of address space, also of the daemon and each worker."""
MAX_FINDINGS = 5
"""Different ones, of one target, after which it is left: it would mostly find them again."""


@dataclass(slots=True)
class Result:
    title: str
    inputs: int = 0
    cpu: float = 0.0
    """Seconds, of this process and of the daemon with its workers."""
    failing: str = ""
    """The input that failed last."""
    found: dict[str, str] = field(default_factory=dict)
    """What went wrong, by where it did."""


def fuzz(target: Target, seconds: float, seed: int, stop: threading.Event | None = None) -> Result:
    """Check inputs for so long, or until ``stop``. Blocks."""
    result = Result(target.title)
    stop = stop or threading.Event()
    end = time.monotonic() + seconds
    started = time.process_time()
    while time.monotonic() < end and not stop.is_set() and len(result.found) < MAX_FINDINGS:
        try:
            _round(target, result, end, seed, stop)
        except Exception as exc:
            where = _place(exc)
            if where not in result.found:
                told = "".join(traceback.format_exception(exc))[-6000:]
                result.found[where] = f"seed {seed}: {told}\nThe input, made small: {result.failing[:2000]}"
                print(f"{target.name}: {result.found[where]}", file=sys.stderr, flush=True)
        seed += 1
    result.cpu = time.process_time() - started
    return result


def _round(target: Target, result: Result, end: float, seed: int, stop: threading.Event) -> None:
    failed = False

    @hypothesis.seed(seed)
    @settings(
        max_examples=ROUND_EXAMPLES,
        phases=(Phase.generate, Phase.shrink),
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def check(case: Any) -> None:
        nonlocal failed
        # Making an input small takes as long as it takes: what passes meanwhile must pass for its own sake.
        if stop.is_set() or (not failed and time.monotonic() > end):
            return
        result.inputs += 1
        try:
            target.check(case)
        except Exception:
            failed = True
            result.failing = repr(case)
            raise

    check()


def _place(exc: BaseException) -> str:
    """The kind of exception and the line of lmd (or of the check) that raised it: what tells one finding of another."""
    frames = traceback.extract_tb(exc.__traceback__)
    ours = [frame for frame in frames if "/lmd/" in frame.filename or "/bench/" in frame.filename]
    last = (ours or frames)[-1]
    return f"{type(exc).__name__} at {Path(last.filename).name}:{last.lineno}"


async def fuzz_all(names: Sequence[str], seconds: float, seed: int) -> list[Result]:
    """Every target for its share of the time, one after the other."""
    share = seconds / len(names)
    stop = threading.Event()

    async def run(target: Target) -> Result:
        try:
            return await asyncio.to_thread(fuzz, target, share, seed, stop)
        except asyncio.CancelledError:
            stop.set()  # its thread has to end as well
            raise

    results: list[Result] = []
    with tempfile.TemporaryDirectory(prefix="lmd-fuzz-", dir=_memory()) as name:
        folder = Path(name)
        results += [await run(target) for target in pure_targets(folder) if target.name in names]
        if {"http", "control"} & set(names):
            with hub() as endpoint:
                async with fuzzed_daemon(folder, endpoint) as daemon:
                    await daemon.start()
                    for target in wire_targets(daemon):
                        if target.name in names:
                            results.append(await _from_outside(daemon, run, target))
    return results


async def _from_outside(daemon: Supervised, run: Callable[[Target], Awaitable[Result]], target: Target) -> Result:
    before = cpu_seconds(daemon.pid)
    result = await run(target)
    if not daemon.is_up:
        result.found.setdefault("the daemon", "it has ended")
        await daemon.start()
        return result
    result.cpu += cpu_seconds(daemon.pid) - before
    return result


def _memory() -> str | None:
    """A folder in memory: a file is written for each input."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def add_up(results: Sequence[Result], file: Path) -> list[Result]:
    """``results`` on top of what earlier runs left in ``file``, and leave the sums there for the next one."""
    sums = (
        {one.title: one for one in msgspec.json.decode(file.read_bytes(), type=list[Result])} if file.exists() else {}
    )
    for one in results:
        whole = sums.setdefault(one.title, Result(one.title))
        whole.inputs += one.inputs
        whole.cpu += one.cpu
        whole.found |= one.found
    file.write_bytes(msgspec.json.encode(list(sums.values())))
    return list(sums.values())


def described(results: Sequence[Result], seed: int) -> str:
    lines = ["| what is read | inputs | CPU | findings |", "|---|---:|---:|---:|"]
    lines += [f"| {one.title} | {one.inputs:,} | {_clock(one.cpu)} | {len(one.found)} |" for one in results]
    total, n_found = sum(one.cpu for one in results), sum(len(one.found) for one in results)
    story = (
        f"{_clock(total)} of CPU in all, the last from seed {seed} on: {n_found or 'no'} finding{'s' * (n_found != 1)}."
    )
    found = [f"- {one.title}: {where}" for one in results for where in one.found]
    parts = ["\n".join(lines), story, "\n".join(found), f"{datetime.now(UTC):%Y-%m-%d}; {machine()}; {versions()}."]
    return "\n\n".join(part for part in parts if part)


def _clock(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes else f"{seconds:.0f} s"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fuzz", description="Feed lmd spoiled input.")
    parser.add_argument("--minutes", type=float, default=60.0, help="for all targets together")
    parser.add_argument("--only", default=",".join(NAMES), help=f"some of {','.join(NAMES)}")
    parser.add_argument("--seed", type=int, default=int(time.time()) & 0xFFFFFF)
    parser.add_argument("--write", type=Path, help="put the figures into this Markdown file")
    parser.add_argument("--totals", type=Path, help="add to the figures in this file, and tell the sums")
    given_ = parser.parse_args(argv)
    names = given_.only.split(",")
    if unknown := set(names) - set(NAMES):
        parser.error(f"--only: there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    run_until_signalled(_run(names, given_.minutes, given_.seed, given_.write, given_.totals))


async def _run(names: Sequence[str], minutes: float, seed: int, write: Path | None, totals: Path | None) -> None:
    # An input that takes all memory is a finding like others, and no reason to take the machine down.
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable()  # every file that cannot be served is a line
    results = await fuzz_all(names, minutes * 60, seed)
    text = described(add_up(results, totals) if totals else results, seed)
    print(text)
    if write:
        write_block(write, "fuzz", text)
    if any(one.found for one in results):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
