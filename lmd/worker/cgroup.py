"""The memory that the kernel lets this process and its children have, and whom it killed for want of it.

Reads ``/proc/meminfo`` and the memory controller's files of cgroup v2 (``memory.max``, ``memory.high``,
``memory.current``, ``memory.stat``, ``memory.events``) or v1 (``memory.limit_in_bytes`` …), on every level
from this process's cgroup up to the root that it can see: a limit on a parent binds as well.
Kernel documentation: admin-guide/cgroup-v2 and admin-guide/cgroup-v1/memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NO_LIMIT = 1 << 60
"""v1 says "no limit" with the largest multiple of the page size."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where the kernel's files are; tests point it at a directory of their own."""

    proc: Path = Path("/proc")
    cgroup: Path = Path("/sys/fs/cgroup")


KERNEL = Files()


@dataclass(frozen=True, slots=True)
class SystemMemory:
    """Bytes. ``available`` is what could be had without swapping: page cache that can be dropped counts as free."""

    total: int
    available: int


def system_memory(files: Files = KERNEL) -> SystemMemory:
    """The machine's memory, or less where a cgroup limits this process. Files that cannot be read do not limit."""
    meminfo = _fields(files.proc / "meminfo")
    total = meminfo.get("MemTotal:", 0) * 1024
    available = meminfo.get("MemAvailable:", 0) * 1024
    for limit, used in _limits(files):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return SystemMemory(total, available)


def oom_kills(files: Files = KERNEL) -> int:
    """How often the OOM killer struck in this process's cgroup (0 where the kernel does not tell). Only grows."""
    for directory, version in _cgroups(files):
        counters = _fields(directory / ("memory.events" if version == 2 else "memory.oom_control"))
        if "oom_kill" in counters:
            return counters["oom_kill"]
    return _fields(files.proc / "vmstat").get("oom_kill", 0)


def anonymous_bytes(pid: int, files: Files = KERNEL) -> int:
    """Memory of one process that no page cache backs: what it takes away from ``available``. 0 when it is gone."""
    status = _fields(files.proc / str(pid) / "status")
    return (status.get("RssAnon:", 0) + status.get("RssShmem:", 0)) * 1024


def _limits(files: Files) -> Iterator[tuple[int, int]]:
    """(limit, bytes in use that cannot be reclaimed) of each level that has a limit."""
    for directory, version in _cgroups(files):
        stat = _fields(directory / "memory.stat")
        if version == 2:
            limits = [_number(directory / "memory.max"), _number(directory / "memory.high")]
            used = _number(directory / "memory.current")
            reclaimable = stat.get("active_file", 0) + stat.get("inactive_file", 0) + stat.get("slab_reclaimable", 0)
        else:
            limits = [_number(directory / "memory.limit_in_bytes")]
            used = _number(directory / "memory.usage_in_bytes")
            reclaimable = stat.get("total_active_file", 0) + stat.get("total_inactive_file", 0)
        bounds = [limit for limit in limits if limit is not None and limit < _NO_LIMIT]
        if bounds and used is not None:
            yield min(bounds), max(0, used - reclaimable)


def _cgroups(files: Files) -> Iterator[tuple[Path, int]]:
    """This process's memory cgroups from the innermost out, with the cgroup version of each."""
    try:
        lines = (files.proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            root, version = files.cgroup / "memory", 1
        elif not controllers:
            unified = files.cgroup / "unified"
            root, version = unified if unified.is_dir() else files.cgroup, 2
        else:
            continue
        # In a container the path may be the host's; the mount then starts at our own cgroup.
        here = root / path.lstrip("/")
        if not here.is_dir():
            here = root
        while True:
            yield here, version
            if here == root or root not in here.parents:
                break
            here = here.parent


def _fields(path: Path) -> dict[str, int]:
    """Lines of "name number [unit]"; {} when the file is not there."""
    try:
        text = path.read_text()
    except OSError:
        return {}
    fields = (line.split() for line in text.splitlines())
    return {words[0]: int(words[1]) for words in fields if len(words) >= 2 and words[1].isdigit()}


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
