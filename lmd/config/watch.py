"""Noticing that configuration files changed, however they were saved and whatever the mount.

inotify (watchfiles) wakes us at once where it works; a look at the files' status several times a second finds the rest:
network mounts, a watch limit that is used up, directories that come and go, targets of symlinks. Either way the
status decides, and it must have stood still for a moment, so that one save is one change and no half of it is read.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from watchfiles import awatch
from watchfiles._rust_notify import WatchfilesRustInternalError

from lmd.config.snapshot import preset_paths

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
"""Between looks without an event. A few dozen stat calls; no more than a second may pass until an edit counts."""
SETTLE_SECONDS = 0.15
"""For so long nothing may change before files count as written."""
SETTLE_LIMIT_SECONDS = 3.0
"""What never stands still is read after so long all the same: wrong halves do no harm, and the next look mends them."""


@dataclass(frozen=True, slots=True)
class Watched:
    """The preset directory, and single files beside it. None of them needs to exist."""

    folder: Path
    files: frozenset[Path]


Fingerprint = tuple[tuple[str, int, int, int, int, int], ...]


def fingerprint(watched: Watched) -> Fingerprint:
    """Differs when the content of a watched file may differ. Follows symlinks. Blocks on the file system."""
    # The folder's own times tell of a preset that came and went again between two looks.
    paths = {watched.folder, *watched.files}
    with contextlib.suppress(OSError):
        paths.update(preset_paths(watched.folder))
    found = []
    for path in sorted(paths):
        with contextlib.suppress(OSError, ValueError):
            status = path.stat()
            times = (status.st_mtime_ns, status.st_ctime_ns)
            found.append((str(path), status.st_dev, status.st_ino, status.st_size, *times))
    return tuple(found)


def folders(watched: Watched) -> frozenset[Path]:
    """The directories where inotify can tell of a change: of the files, of what symlinks lead to, or, for what does
    not exist, the nearest that does. Blocks on the file system."""
    wanted = {watched.folder, *(path.parent for path in watched.files)}
    with contextlib.suppress(OSError):
        wanted.update(_target(path).parent for path in preset_paths(watched.folder) if path.is_symlink())
    wanted.update(_target(path).parent for path in watched.files if path.is_symlink())
    return frozenset(_nearest(folder) for folder in wanted)


def _target(link: Path) -> Path:
    # Not `resolve`: it raises RuntimeError, or OSError, for a link that leads to itself.
    return Path(os.path.realpath(link))


def _nearest(folder: Path) -> Path:
    return next((path for path in (folder, *folder.parents) if path.is_dir()), Path("/"))


async def watch_files(
    watched: Callable[[], Watched],
    changed: Callable[[], Awaitable[object]],
    *,
    poll: float = POLL_SECONDS,
    settle: float = SETTLE_SECONDS,
    use_events: bool = True,
) -> None:
    """Await ``changed`` once at the start and after each change of the files that ``watched`` names, until cancelled.

    ``watched`` is asked again after each change, since what is read can name other files. ``use_events=False``: as on a
    mount that tells nothing.
    """
    woken = asyncio.Event()
    events: asyncio.Task[None] | None = None
    wanted, looked_at = frozenset[Path](), frozenset[Path]()
    targets = watched()
    seen: Fingerprint | None = None
    try:
        while True:
            if seen is None:
                # Read after looking: what changes in between shows as a difference at the next look.
                seen, wanted = await asyncio.to_thread(_look, targets)
                await changed()
                if (renewed := watched()) != targets:
                    targets, seen = renewed, None
                    continue
            if use_events and (wanted != looked_at or events is None or events.done()):
                await _stop(events)
                looked_at, events = wanted, asyncio.create_task(_wake_on_events(wanted, woken))
            # Not `wait_for`: before Python 3.12 it loses a cancellation that comes together with an event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(poll):
                    await woken.wait()
            woken.clear()
            now, wanted = await asyncio.to_thread(_look, targets)
            if now != seen:
                await _settle(targets, now, settle)
                seen = None
    finally:
        await _stop(events)


def _look(targets: Watched) -> tuple[Fingerprint, frozenset[Path]]:
    """Together: an idle daemon is not to wake its threads more often than it must."""
    return fingerprint(targets), folders(targets)


async def _settle(targets: Watched, now: Fingerprint, settle: float) -> None:
    """Wait until the fingerprint has been the same for ``settle`` seconds."""
    deadline = asyncio.get_running_loop().time() + SETTLE_LIMIT_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        await asyncio.sleep(settle)
        later = await asyncio.to_thread(fingerprint, targets)
        if later == now:
            return
        now = later


async def _wake_on_events(paths: frozenset[Path], woken: asyncio.Event) -> None:
    """Set ``woken`` at each event in ``paths``. Returns when events cannot be had (any more)."""
    try:
        async for _ in awatch(*paths, watch_filter=None, recursive=False, debounce=50, step=50):
            woken.set()
    except (OSError, RuntimeError, WatchfilesRustInternalError) as exc:
        log.debug("No file events for %s, looking at the files instead: %s", ", ".join(map(str, paths)), exc)
        # Paced by whoever starts this again: after the next look.


async def _stop(task: asyncio.Task[None] | None) -> None:
    if task is not None:
        task.cancel()
        # Not `await task`: its CancelledError could not be told from our own.
        await asyncio.wait([task])
