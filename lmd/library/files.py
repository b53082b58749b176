"""The GGUF files under the model directories, found without opening any."""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_DEPTH = 16
"""Directories below a model directory."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file that may be a model. ``place`` is its path below the model directory, in parts."""

    path: Path
    place: tuple[str, ...]
    size: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Broken:
    """A file or directory under the model directories that cannot be served, and why."""

    path: Path
    reason: str
    size: int = 0


def find_files(directories: Sequence[Path]) -> tuple[list[Found], list[Broken]]:
    """All ``*.gguf`` files, in the order of the directories and of their names, each file once. Blocks; never raises.

    Hidden names are left out, and so are unfinished downloads, whose names end otherwise (``.part``, ``.incomplete``).
    Symlinks are followed; what is reached both directly and through a symlink counts for the direct way.
    A model directory that does not exist holds no models.
    """
    search = _Search()
    for root in directories:
        search.walk(root, ())
        while search.linked:
            search.walk(*search.linked.pop(0))
    return search.found, search.broken


class _Search:
    def __init__(self) -> None:
        self.found: list[Found] = []
        self.broken: list[Broken] = []
        self.linked: list[tuple[Path, tuple[str, ...]]] = []
        """Symlinks met on the way, and their places: gone after when all else is known."""
        self._seen: set[tuple[int, int]] = set()
        """Device and inode of directories and files; so no loop of symlinks is gone round twice."""

    def walk(self, path: Path, place: tuple[str, ...]) -> None:
        """Take in what is at ``path`` and below it."""
        try:
            status = path.stat()
            if not stat.S_ISDIR(status.st_mode):
                if not place and not _is_model_name(path.name):
                    self.broken.append(Broken(path, "it is not a directory"))
                elif _is_model_name(path.name) and (status.st_dev, status.st_ino) not in self._seen:
                    self._add(path, place or (path.name,), status)
                return
            if (status.st_dev, status.st_ino) in self._seen:
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                inside = sorted((entry for entry in entries if _is_seen(entry.name)), key=lambda entry: entry.name)
        except FileNotFoundError:
            if _is_model_name(path.name):
                self.broken.append(Broken(path, "it is a symbolic link that leads nowhere"))
            return
        except OSError as exc:
            self.broken.append(Broken(path, f"it cannot be read: {exc.strerror or exc}"))
            return
        for entry in inside:
            self._enter(entry, (*place, entry.name))

    def _enter(self, entry: os.DirEntry[str], place: tuple[str, ...]) -> None:
        path = Path(entry.path)
        try:
            if entry.is_symlink():
                self.linked.append((path, place))
            elif entry.is_dir(follow_symlinks=False):
                if len(place) <= MAX_DEPTH:
                    self.walk(path, place)
            elif _is_model_name(entry.name):
                self._add(path, place, entry.stat())
        except FileNotFoundError:
            return  # removed this moment
        except OSError as exc:
            self.broken.append(Broken(path, f"it cannot be read: {exc.strerror or exc}"))

    def _add(self, path: Path, place: tuple[str, ...], status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            self.broken.append(Broken(path, "it is not a regular file"))
            return
        self._seen.add((status.st_dev, status.st_ino))
        self.found.append(Found(path, place, status.st_size, status.st_mtime_ns))


def _is_model_name(name: str) -> bool:
    return name.lower().endswith(".gguf")


def _is_seen(name: str) -> bool:
    """Not hidden, and UTF-8: any other name could be told to nobody."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return not name.startswith(".")
