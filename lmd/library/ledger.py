"""What of the downloads outlives the daemon: one JSON file, replaced as a whole."""

import logging
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from lmd.library.repository import Repository, Variant
from lmd.library.transfer import Partial

log = logging.getLogger(__name__)

FORMAT = 1


class Entry(msgspec.Struct):
    """One file of a download: where it is in the repository, and where it goes."""

    path: str
    target: str
    size: int
    sha256: str | None = None
    blob: str | None = None


class Record(msgspec.Struct):
    """One download, as far as it has to be remembered."""

    id: str
    model: str
    revision: str
    quantization: str
    format: str
    files: list[Entry]
    state: str
    created_at: float
    finished_at: float = 0.0
    error: str | None = None
    code: str = ""
    hint: str | None = None
    key: str = ""

    @property
    def name(self) -> str:
        return f"{self.model}@{self.quantization.lower()}"

    def is_for(self, files: Sequence[Entry]) -> bool:
        """It fetches just these."""
        return {_identity(file) for file in self.files} == {_identity(file) for file in files}

    def clashes_with(self, files: Sequence[Entry]) -> bool:
        """It fetches something else to the place of one of these."""
        wanted = {file.target: _identity(file) for file in files}
        return any(wanted.get(file.target, _identity(file)) != _identity(file) for file in self.files)


def _identity(file: Entry) -> tuple[str, int, str | None, str | None]:
    return file.target, file.size, file.sha256, file.blob


def new_record(repository: Repository, variant: Variant, files: list[Entry]) -> Record:
    return Record(
        id=secrets.token_hex(4),
        model=repository.name,
        revision=repository.revision,
        quantization=variant.quantization,
        format=variant.format,
        files=files,
        state="queued",
        created_at=time.time(),
    )


class Contents(msgspec.Struct):
    format: int = FORMAT
    downloads: list[Record] = []
    partials: dict[str, Partial] = {}
    """By the target's path: what its ``.part`` file belongs to."""


class Ledger:
    """The file. One thread at a time uses it."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def load(self) -> Contents:
        """Blocks. A file that cannot be read holds nothing: it is told, put aside, and what is on disk stays."""
        try:
            found = msgspec.json.decode(self._file.read_bytes(), type=Contents)
        except FileNotFoundError:
            return Contents()
        except (OSError, msgspec.MsgspecError, ValueError, RecursionError) as exc:
            log.error("The list of downloads %s cannot be used: %s", self._file, exc)
            return self._aside()
        if found.format != FORMAT:
            log.error("The list of downloads %s is of another version of lmd", self._file)
            return self._aside()
        return found

    def _aside(self) -> Contents:
        try:
            self._file.replace(self._file.with_suffix(".bad"))
        except OSError as exc:
            log.error("%s cannot be put aside: %s", self._file, exc)
        return Contents()

    def save(self, encoded: bytes) -> None:
        """Takes what `encode` gives. Blocks until it is on disk. OSError."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(encoded)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._file)
        sync_directory(self._file.parent)


def encode(contents: Contents) -> bytes:
    return msgspec.json.format(msgspec.json.encode(contents), indent=1)


def sync_directory(path: Path) -> None:
    """Makes names that were given or changed in ``path`` last. Blocks."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
