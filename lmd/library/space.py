"""Room on the disk."""

import shutil
from pathlib import Path

from lmd.errors import DiskFull

RESERVE = 256 * 2**20
"""Bytes that are left free: a full disk would stop more than a download."""


def free_bytes(path: Path) -> int:
    """Free bytes of the file system where ``path`` is, or will be. Blocks."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def check_space(what: str, directory: Path, *, needed: int, others: int, free: int) -> None:
    """DiskFull unless ``needed`` bytes more for ``what``, and ``others`` that are on their way, leave the reserve."""
    if needed + others + RESERVE <= free:
        return
    more = f" and {gib(others)} more are on their way" if others else ""
    raise DiskFull(
        f"{what} needs {gib(needed)} at {directory}, where {gib(free)} are free{more}; {gib(RESERVE)} stay free.",
        hint="Remove a model ('lmctl ls', 'lmctl rm'), or name a larger disk first in [paths] models; then try again.",
    )


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
