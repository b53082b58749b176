"""How many threads compute."""

import contextlib
import os
from pathlib import Path


def default_threads() -> int:
    """Physical cores that this process may use, within its cgroup's CPU quota; at least 1.

    Two threads on one core slow each other down in matrix products, so siblings count once.
    """
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        with contextlib.suppress(OSError):
            cores.add(topology.read_text().strip())
    n = len(cores) or len(allowed)
    with contextlib.suppress(OSError, ValueError):
        group = Path("/proc/self/cgroup").read_text().rpartition("::")[2].strip()
        quota, period = Path(f"/sys/fs/cgroup{group}/cpu.max").read_text().split()
        if quota != "max":
            n = min(n, -(-int(quota) // int(period)))
    return max(1, n)
