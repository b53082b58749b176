"""What the figures were measured on: without it they mean nothing."""

import os
import platform
import subprocess
from pathlib import Path

from tests.bench import llama_source

_ROOT = Path(__file__).parents[2]


def machine() -> str:
    """Processor, cores that this process may use, memory, kernel and Python, in one line."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB,"
        f" Linux {platform.release()}, Python {platform.python_version()}"
    )


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return " ".join(line.partition(":")[2].split())
    return platform.machine()


def versions() -> str:
    """llama-cpp-python's version, which both sides share, and lmd's commit (``+`` where the tree was not clean)."""
    return f"llama-cpp-python {llama_source.version()} (both sides), lmd at {_commit()}"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", _ROOT, *arguments], capture_output=True, text=True).stdout.strip()

    commit = git("rev-parse", "--short", "HEAD")
    if not commit:
        return "an unknown commit"
    return commit + ("+" if git("status", "--porcelain", "--untracked-files=no", "lmd") else "")


def busy() -> float:
    """Load average of the last minute: other work that would spoil the figures."""
    return os.getloadavg()[0]
