"""The ``.part`` files: what each belongs to, and the one transfer that fills it, whoever wants the file."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmd.library.ledger import Entry, sync_directory
from lmd.library.transfer import Pace, Partial, Source, Transfer


@dataclass(slots=True)
class _Shared:
    """One file on its way, and how many downloads want it."""

    transfer: Transfer
    task: asyncio.Task[None]
    users: int = 0


class Incoming:
    """Owner of the ``.part`` files below ``root``. ``partials`` is kept between runs by the caller."""

    def __init__(self, root: Path, *, pace: Pace, room: Callable[[], None], on_change: Callable[[str], None]) -> None:
        """``room``: see `Transfer`. ``on_change`` is told the target whose transfer or partial changed."""
        self.partials: dict[str, Partial] = {}
        self._root = root
        self._pace = pace
        self._room = room
        self._on_change = on_change
        self._shared: dict[str, _Shared] = {}

    def prepare(self, file: Entry) -> None:
        """``file`` will be fetched. A ``.part`` of another version, or of one that nobody can check, is removed."""
        known = self.partials.get(file.target)
        if known is None or (known.size, known.sha256, known.blob) != (file.size, file.sha256, file.blob):
            if known is not None or file.sha256 is None:
                part_of(file).unlink(missing_ok=True)
            self.partials[file.target] = Partial(file.size, file.sha256, file.blob)

    def has(self, file: Entry) -> bool:
        """It is there under its name, and not about to be replaced by another version."""
        return file.target not in self.partials and size_of(Path(file.target)) == file.size

    def received(self, file: Entry) -> int:
        """Bytes of it that are here."""
        if (shared := self._shared.get(file.target)) is not None:
            return min(shared.transfer.received, file.size)
        return file.size if self.has(file) else min(max(0, size_of(part_of(file))), file.size)

    async def fetch(self, file: Entry, source: Source, watching: Callable[[Transfer], None]) -> None:
        """Have ``file`` whole, as its ``.part`` or under its name: by a transfer of ours or one that runs already.

        ``watching`` is given the transfer. Raises what the transfer does; cancelled, it stops unless others want it.
        """
        if self.has(file):
            return
        while (shared := self._shared.get(file.target)) is not None and not shared.users:
            await asyncio.wait([shared.task])  # one that is just being given up
        if shared is None:
            shared = self._begin(file, source)
        shared.users += 1
        watching(shared.transfer)
        try:
            await asyncio.shield(shared.task)
        finally:
            shared.users -= 1
            if not shared.users and not shared.task.done():
                shared.task.cancel()
                await asyncio.wait([shared.task])

    def _begin(self, file: Entry, source: Source) -> _Shared:
        if file.target not in self.partials:
            self.prepare(file)
        transfer = Transfer(
            source,
            self.partials[file.target],
            part_of(file),
            pace=self._pace,
            on_change=lambda: self._on_change(file.target),
            room=self._room,
        )
        shared = self._shared[file.target] = _Shared(transfer, asyncio.create_task(transfer.run()))

        def ended(task: asyncio.Task[None]) -> None:
            self._shared.pop(file.target, None)
            if not task.cancelled():
                task.exception()  # told by the downloads that wait for it, if any is left

        shared.task.add_done_callback(ended)
        return shared

    def publish(self, files: Sequence[Entry]) -> None:
        """Give every file its name: the library sees all of a model, or nothing. Blocks. OSError."""
        for file in files:
            if part_of(file).exists():
                part_of(file).replace(file.target)
            elif size_of(Path(file.target)) != file.size:
                raise FileNotFoundError(2, "it was removed from the disk meanwhile", file.target)
        for folder in {Path(file.target).parent for file in files}:
            sync_directory(folder)

    def forget(self, files: Iterable[Entry]) -> None:
        for file in files:
            self.partials.pop(file.target, None)

    def remove(self, files: Iterable[Entry]) -> None:
        """Remove the ``.part`` files, and directories that are empty then. Blocks."""
        for file in files:
            with contextlib.suppress(OSError):
                part_of(file).unlink()
            remove_empty(Path(file.target).parent, self._root)


def part_of(file: Entry) -> Path:
    return Path(f"{file.target}.part")


def size_of(path: Path) -> int:
    """-1 where there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def remove_empty(folder: Path, root: Path) -> None:
    """Remove ``folder`` and those above it while they are empty, up to ``root``, which stays. Blocks."""
    while root in folder.parents:
        try:
            folder.rmdir()
        except OSError:
            return
        folder = folder.parent
