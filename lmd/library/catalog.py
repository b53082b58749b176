"""The models on disk: found under the model directories, named by keys, followed while lmd runs."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Lock
from types import MappingProxyType

from watchfiles import Change, awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

from lmd.errors import ModelFileError, ModelNotFound, UnusableModel
from lmd.library.cache import HeaderCache
from lmd.library.files import Broken, Found, find_files
from lmd.library.gguf import read_header
from lmd.library.header import Header
from lmd.library.mlx import find_mlx
from lmd.library.model import Model, gather_models, split_name
from lmd.library.names import Names

__all__ = ["Broken", "Catalog", "Model", "Refreshed"]

log = logging.getLogger(__name__)

POLL_SECONDS = 10.0
"""Between looks without an event: for network mounts, targets of symlinks, directories that do not exist yet."""


@dataclass(frozen=True, slots=True)
class Refreshed:
    """What a refresh found: keys of models. ``broken``: the list of unusable files is another one."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    broken: bool = False

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed or self.broken)


@dataclass(frozen=True, slots=True)
class _Picture:
    models: Mapping[str, Model] = field(default_factory=dict)
    broken: tuple[Broken, ...] = ()
    names: Names = field(default_factory=lambda: Names({}))
    by_path: Mapping[Path, Model] = field(default_factory=dict)


class Catalog:
    """Owner of what is known of the model directories. Readers see an immutable picture, replaced as a whole.

    Empty until the first `refresh`. Earlier directories go before later ones where both claim a key.
    """

    def __init__(self, directories: Sequence[Path], cache_file: Path | None = None) -> None:
        """``cache_file``: where headers are kept between runs; it and its directory need not exist."""
        self.directories = tuple(directories)
        self._cache = HeaderCache(cache_file)
        self._picture = _Picture()
        self._on_disk: tuple[list[tuple[Found, Header | str]], list[Broken], list[Model]] = ([], [], [])
        """What the picture was made of."""
        self._refreshing = Lock()
        self._subscribers: list[Callable[[Refreshed], None]] = []
        self._elsewhere: dict[Path, tuple[int, int, Model]] = {}

    @property
    def models(self) -> Mapping[str, Model]:
        """By key, in the order of the keys."""
        return self._picture.models

    @property
    def broken(self) -> tuple[Broken, ...]:
        """In the order of their paths."""
        return self._picture.broken

    def find(self, name: str) -> Model:
        """The model of a key or an unambiguous short form; ModelNotFound, AmbiguousModel. Never reads a path.

        UnusableModel, with the reason, where it is the name of a file that cannot be served.
        """
        try:
            return self._picture.names.find(name)
        except ModelNotFound:
            if (broken := self.find_broken(name)) is None:
                raise
            raise UnusableModel(
                f"The model file '{broken.path.name}' is there, but cannot be served: {broken.reason}.",
                hint="'lmctl ls' shows what is wrong with which file; 'lmctl get' fetches it anew.",
                param="model",
            ) from None

    def find_broken(self, name: str) -> Broken | None:
        """The unusable file of that name, with its suffix or without."""
        asked = name.casefold()
        return next((one for one in self.broken if asked in {one.path.stem.casefold(), one.path.name.casefold()}), None)

    def at(self, path: Path) -> Model:
        """The model in the file at ``path``, also outside the model directories. ModelNotFound, ModelFileError.

        A model from outside has its stem for a key and no other name. Blocks for one header read the first time and
        whenever the file changed; else for a stat. Only for paths that an operator wrote.
        """
        if model := self._picture.by_path.get(path):
            return model
        try:
            status = path.stat()
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise ModelNotFound(f"There is no model file {path}: {reason}.", param="model") from exc
        size, mtime_ns, model = self._elsewhere.get(path, (0, 0, None))
        if model is None or (size, mtime_ns) != (status.st_size, status.st_mtime_ns):
            model = _model_at(path)
            self._elsewhere[path] = status.st_size, status.st_mtime_ns, model
        return model

    def refresh(self) -> Refreshed:
        """Look at the directories anew. Blocking: run it in a thread. Never raises for what is on disk.

        Files that newly cannot be served are told to the log.
        """
        with self._refreshing:
            files, unreadable = find_files(self.directories)
            mlx, unusable = find_mlx(self.directories)
            unreadable += unusable
            on_disk = self._cache.read(files), unreadable, mlx
            if on_disk == self._on_disk:
                return Refreshed()
            models, broken = gather_models(on_disk[0])
            models = dict(sorted(({model.key: model for model in mlx} | models).items(), key=_by_key))
            before, self._on_disk = self._picture, on_disk
            self._picture = _Picture(
                MappingProxyType(models),
                tuple(sorted([*unreadable, *broken], key=lambda one: one.path)),
                Names(models),
                {path: model for model in models.values() for path in model.parts[:1]},
            )
            told = {(one.path, one.reason) for one in before.broken}
            for one in self._picture.broken:
                if (one.path, one.reason) not in told:
                    log.warning("%s cannot be served: %s", one.path, one.reason)
            return Refreshed(
                added=tuple(key for key in models if key not in before.models),
                removed=tuple(key for key in before.models if key not in models),
                changed=tuple(key for key, model in models.items() if before.models.get(key, model) != model),
                broken=before.broken != self._picture.broken,
            )

    async def update(self) -> Refreshed:
        """`refresh` in a thread, then tell the subscribers on the event loop if anything changed."""
        refreshed = await asyncio.to_thread(self.refresh)
        if refreshed:
            for callback in tuple(self._subscribers):
                try:
                    callback(refreshed)
                except Exception:
                    log.exception("A follower of the model directories failed")
        return refreshed

    def subscribe(self, callback: Callable[[Refreshed], None]) -> Callable[[], None]:
        """Call ``callback`` on the event loop after each `update` that changed something; returns the unsubscriber."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return unsubscribe

    async def watch(self, *, poll: float = POLL_SECONDS, use_events: bool = True) -> None:
        """Follow additions and removals until cancelled: at once where the mount tells events, else within ``poll``.

        ``use_events=False``: as on a mount that tells nothing. Begins with an `update`.
        """
        while True:
            await self.update()
            present = [path for path in self.directories if path.is_dir()] if use_events else []
            if not present:
                await asyncio.sleep(poll)
                continue
            try:
                events = awatch(
                    *present,
                    watch_filter=_is_interesting,
                    debounce=400,
                    step=50,
                    rust_timeout=max(1, int(poll * 1000)),
                    yield_on_timeout=True,
                    ignore_permission_denied=True,
                )
                async for _ in events:
                    await self.update()
                    if present != [path for path in self.directories if path.is_dir()]:
                        break
            except (OSError, RuntimeError, WatchfilesRustInternalError) as exc:
                log.debug("No file events for the model directories, looking every %g s instead: %s", poll, exc)
                await asyncio.sleep(poll)


def _by_key(item: tuple[str, Model]) -> tuple[str, str]:
    return item[0].casefold(), item[0]


def _is_interesting(_: Change, path: str) -> bool:
    """An unfinished download grows all the time and is no model yet."""
    return not path.endswith((".part", ".incomplete")) and "/." not in path[path.rfind("/") :]


def _model_at(path: Path) -> Model:
    """The model whose file, or one of whose parts, is at ``path``. ModelFileError."""
    read_header(path)  # for its reason, should the file be no model by itself
    files = []
    for near in sorted(path.parent.glob("*.[gG][gG][uU][fF]")):
        if near == path or split_name(near) == split_name(path) or "mmproj" in near.name.lower():
            try:
                status = near.stat()
            except OSError:
                continue
            files.append(Found(near, (near.name,), status.st_size, status.st_mtime_ns))
    models, broken = gather_models(HeaderCache(None).read(files))
    for model in models.values():
        if path in model.parts:
            return replace(model, key=model.stem)
    reason = next((one.reason for one in broken), "it is no model by itself")
    raise ModelFileError(f"{path} cannot be served: {reason}.")
