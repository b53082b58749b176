"""The models on disk: found under the model directories, named by keys, followed while lmd runs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmd.library.gguf import Header


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model that can be loaded. Two models are the same when their key, files and header are."""

    key: str
    publisher: str
    """"" for a loose file, as is ``repo``."""
    repo: str
    path: Path
    """What a worker opens: the file, or the first part of a split one."""
    parts: tuple[Path, ...]
    mmproj: Path | None
    header: Header
    """Of all parts together."""
    size: int
    """Bytes on disk, all parts."""
    mtime: float


@dataclass(frozen=True, slots=True)
class Broken:
    """A file (or directory) under the model directories that cannot be served, and why."""

    path: Path
    reason: str
    size: int = 0


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh found: keys of models."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[str, ...]


class Catalog:
    """Owner of what is known of the model directories. Readers see an immutable picture, replaced as a whole."""

    def __init__(self, directories: Sequence[Path], cache_file: Path | None = None) -> None:
        raise NotImplementedError

    @property
    def models(self) -> Mapping[str, Model]:
        """By key, in the order of the keys."""
        raise NotImplementedError

    @property
    def broken(self) -> tuple[Broken, ...]:
        raise NotImplementedError

    def find(self, name: str) -> Model:
        """The model of a key or an unambiguous short form; ModelNotFound, AmbiguousModel."""
        raise NotImplementedError

    def at(self, path: Path) -> Model:
        """The model in the file at ``path``, also outside the model directories. ModelNotFound, ModelFileError.

        Blocks for one header read the first time and whenever the file changed; else for a stat.
        """
        raise NotImplementedError

    def refresh(self) -> Refreshed:
        """Look at the directories anew. Blocking: run it in a thread. Never raises for what is on disk."""
        raise NotImplementedError

    async def update(self) -> Refreshed:
        """`refresh` in a thread, then tell the subscribers on the event loop if anything changed."""
        raise NotImplementedError

    def subscribe(self, callback: Callable[[Refreshed], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after each `update` that changed something; returns the unsubscriber."""
        raise NotImplementedError

    async def watch(self) -> None:
        """Follow additions and removals until cancelled."""
        raise NotImplementedError
