"""The files that llama.cpp has mapped into this process, and their pages."""

import ctypes
import os
from pathlib import Path
from typing import Final, NamedTuple

_DONTNEED: Final = 4
_POPULATE_READ: Final = 22  # Linux 5.14; an older kernel refuses, and pages come as they are read

Stamp = tuple[tuple[str, int, int, int, int], ...]
"""Of each file: path, device, inode, size and time of the last change."""


class _Range(NamedTuple):
    start: int
    size: int
    path: str


class MappedModel:
    """What is mapped of the model file ``path``: of a split one all parts, which lie in one folder."""

    def __init__(self, path: str) -> None:
        own = Path(path).resolve()  # a link may lead to a name without a suffix, as in the hub's own cache
        parts = f"{own.parent}{os.sep}"
        self._ranges = [
            found
            for found in _ranges()
            if found.path == str(own) or (found.path.startswith(parts) and found.path.endswith(".gguf"))
        ]
        self._stamp = self._look()

    def is_unchanged(self) -> bool:
        """The files are the ones that were mapped: nobody has replaced, deleted or written them."""
        return bool(self._stamp) and self._look() == self._stamp

    def forget(self) -> None:
        """Give the pages back: they stay in the page cache, of which the kernel takes what it needs."""
        self._advise(_DONTNEED)

    def populate(self) -> None:
        """Have all pages again, at once and not one fault after another."""
        self._advise(_POPULATE_READ)

    def _advise(self, advice: int) -> None:
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for found in self._ranges:
            madvise(found.start, found.size, advice)

    def _look(self) -> Stamp:
        """() where one is gone."""
        try:
            stats = {found.path: Path(found.path).stat() for found in self._ranges}
        except OSError:
            return ()
        return tuple((path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns) for path, s in stats.items())


def _ranges() -> list[_Range]:
    """Of /proc/self/maps (proc_pid_maps(5)), those of files."""
    found = []
    for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
        addresses, *_, path = line.split(maxsplit=5)
        if path.startswith("/"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.append(_Range(start, end - start, path.replace("\\012", "\n")))
    return found
