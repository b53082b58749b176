"""What runs that look for leaks have in common: what the daemon holds, when it is left alone, and how it is told."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from tests.bench.report import put_block
from tests.bench.server import ServerFailed, run_until_signalled

PAGE_HEAD = """# Reliability

What lmd is put through, and what came of it. The figures stand between markers, where the scripts put them.
"""


@dataclass(frozen=True, slots=True)
class Held:
    """What the daemon has at one moment."""

    processes: int
    """Itself, its workers and the standby worker."""
    files: int
    threads: int
    rss: int
    """Bytes, of the daemon alone."""

    @classmethod
    def of(cls, pid: int) -> "Held":
        daemon = psutil.Process(pid)
        children = daemon.children(recursive=True)
        return cls(1 + len(children), daemon.num_fds(), daemon.num_threads(), daemon.memory_info().rss)

    def outgrown(self, later: "Held", growth: int) -> list[str]:
        """What there is more of ``later``, in words. ``growth``: bytes by which resident memory may differ."""
        faults = [
            f"{name} grew from {before} to {after}"
            for name in ("processes", "files", "threads")
            if (after := getattr(later, name)) > (before := getattr(self, name))
        ]
        if later.rss > self.rss + growth:
            faults.append(f"resident memory grew from {mib(self.rss)} to {mib(later.rss)}")
        return faults


async def left_alone(pid: int, seconds: float) -> str:
    """Wait until the daemon has a standby worker and nothing else. What else it has after ``seconds``, or ""."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while True:
        try:
            daemon = psutil.Process(pid)
            n_workers, n_clients = len(daemon.children(recursive=True)), _clients(daemon)
        except psutil.NoSuchProcess:
            return "the daemon is gone"
        if n_workers == 1 and n_clients == 0:
            return ""
        if loop.time() > end:
            return f"{n_workers} workers and {n_clients} connections {seconds:g} s after the last request"
        await asyncio.sleep(0.1)


def _clients(daemon: psutil.Process) -> int:
    """Connections that are open: over TCP, and to the control socket."""
    tcp = [one for one in daemon.net_connections("tcp") if one.status != psutil.CONN_LISTEN]
    named = [one for one in daemon.net_connections("unix") if one.laddr]  # those to workers have no name
    return len(tcp) + len(named) - len({one.laddr for one in named})  # one of each name listens


class Outcome(Protocol):
    def faults(self) -> list[str]:
        """What is wrong, in words; empty where all is well."""


Came = TypeVar("Came", bound=Outcome)


def endure(
    name: str,
    description: str,
    run: Callable[[float, str], Awaitable[Came]],
    described: Callable[[Came], str],
    argv: Sequence[str] | None,
) -> None:
    """The command line of ``tests.bench.<name>``. ``run``: for so many seconds, with a seed. SystemExit 1 on faults."""
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench.{name}", description=description)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", default=name)
    parser.add_argument("--write", type=Path, help="put the figures into this Markdown file")
    given = parser.parse_args(argv)

    async def whole() -> None:
        try:
            outcome = await run(given.minutes * 60, given.seed)
        except ServerFailed as exc:
            raise SystemExit(f"{name}: {exc}") from exc
        text = described(outcome)
        print(text)
        if given.write:
            write_block(given.write, name, text)
        if faults := outcome.faults():
            print("\n\n".join(faults), file=sys.stderr)
            raise SystemExit(1)

    run_until_signalled(whole())


def write_block(path: Path, name: str, text: str) -> None:
    path.write_text(put_block(path.read_text() if path.exists() else PAGE_HEAD, name, text))


def mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
