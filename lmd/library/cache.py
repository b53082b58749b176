"""Headers that were read before, kept in a file: a library that has not changed lists in milliseconds."""

import logging
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lmd.errors import ModelFileError
from lmd.library.files import Found
from lmd.library.gguf import read_header
from lmd.library.header import Header

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the cache file. Goes up with each change of what is kept, or of what `read_header` makes of a file."""

SETTLE_SECONDS = 2.0
"""A file that changed so shortly before it was read may change again without its time telling; it is not kept."""


class _Entry(msgspec.Struct, array_like=True, frozen=True):
    size: int
    mtime_ns: int
    header: Header | None
    reason: str = ""


class _File(msgspec.Struct, array_like=True):
    format: int
    entries: dict[str, _Entry]


class HeaderCache:
    """Headers by path, valid while the file has the same size and modification time. One thread at a time uses it."""

    def __init__(self, file: Path | None) -> None:
        """``file`` need not exist; None: nothing is kept beyond this process. Read on first use."""
        self._file = file
        self._entries: dict[str, _Entry] | None = None

    def read(self, files: Sequence[Found]) -> list[tuple[Found, Header | str]]:
        """Each file with its header, or with the reason why it has none. Forgets all other files. Blocks."""
        if self._entries is None:
            self._entries = self._load()
        before, now_ns = self._entries, time.time_ns()
        entries: dict[str, _Entry] = {}
        told: list[tuple[Found, Header | str]] = []
        for file in files:
            path = str(file.path)
            entry = before.get(path)
            if entry is None or (entry.size, entry.mtime_ns) != (file.size, file.mtime_ns):
                entry = _read(file)
            if now_ns - file.mtime_ns > SETTLE_SECONDS * 1e9:
                entries[path] = entry
            told.append((file, entry.reason if entry.header is None else entry.header))
        if (strings := sys.modules.get("lmd.library.strings")) is not None:
            strings.forget()
        if entries.keys() != before.keys() or any(entries[path] is not before[path] for path in entries):
            self._entries = entries
            self._save(entries)
        return told

    def _load(self) -> dict[str, _Entry]:
        if self._file is None:
            return {}
        try:
            kept = msgspec.msgpack.decode(self._file.read_bytes(), type=_File)
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as exc:
            log.info("The header cache %s cannot be used and is made anew: %s", self._file, exc)
            return {}
        return kept.entries if kept.format == FORMAT else {}

    def _save(self, entries: dict[str, _Entry]) -> None:
        if self._file is None:
            return
        data = msgspec.msgpack.encode(_File(FORMAT, entries))
        temporary = ""
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=f".{self._file.name}.", dir=self._file.parent)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).replace(self._file)
        except OSError as exc:
            # A cache that cannot be written costs time at the next start, and nothing else.
            log.warning("The header cache %s cannot be written: %s", self._file, exc)
            if temporary:
                Path(temporary).unlink(missing_ok=True)


def _read(file: Found) -> _Entry:
    try:
        header = read_header(file.path)
    except ModelFileError as exc:
        # It is told of a file that cannot be served, by name.
        reason = exc.message.removeprefix(f"{file.path} ").removeprefix("is not a usable GGUF file: ").removesuffix(".")
        return _Entry(file.size, file.mtime_ns, None, reason)
    return _Entry(file.size, file.mtime_ns, header)
