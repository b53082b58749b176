"""The daemon's downloads: each runs here whoever watches, and goes on where it was after a restart."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from lmd.errors import Conflict, DownloadNotFound, InvalidRequest, LmdError
from lmd.library.hub import Hub
from lmd.library.incoming import Incoming
from lmd.library.ledger import Contents, Entry, Ledger, Record, encode, new_record
from lmd.library.quantizations import quantization_of
from lmd.library.rate import Rate
from lmd.library.reference import Reference, parse_reference
from lmd.library.repository import Format, Repository, Room, Variant, choose, variants
from lmd.library.space import check_space, free_bytes
from lmd.library.transfer import Pace, Source, Transfer, disk_error, whole
from lmd.library.watcher import Watcher
from lmd.protocol import DownloadFile, DownloadRow

log = logging.getLogger(__name__)

AT_ONCE = 2
"""Downloads that run side by side; more share the line and finish no earlier."""
HISTORY = 50
"""Ended downloads that are remembered."""
TICK_SECONDS = 0.25
ENDED = frozenset({"completed", "cancelled"})
RESTING = ENDED | {"failed", "paused"}
"""States in which nothing goes on by itself."""


@dataclass(slots=True)
class _Job:
    record: Record
    task: asyncio.Task[None] | None = None
    transfer: Transfer | None = None
    """The one it waits for."""
    rate: Rate = field(default_factory=Rate)

    def watch(self, transfer: Transfer) -> None:
        self.transfer = transfer


class Downloads:
    """Owner of the list of downloads and of the ledger. Rows are `DownloadRow`: snapshots, made when asked for.

    Between `open` and `close`, on one event loop. `start` and the others raise LmdError.
    """

    def __init__(
        self,
        directory: Path,
        ledger_file: Path,
        hub: Hub,
        *,
        room: Callable[[], Room],
        arrived: Callable[[Sequence[Path]], Awaitable[str]],
        free: Callable[[Path], int] | None = None,
        pace: Pace | None = None,
    ) -> None:
        """``directory``: where models go, as ``<owner>/<repo>/<file>``. ``room``: memory for models, now.

        ``arrived`` is told of a download's files once they have their names; it returns the model's key ("": none).
        ``free``: free bytes of the file system at a path.
        """
        self.directory = directory
        self.hub = hub
        self._ledger = Ledger(ledger_file)
        self.room = room
        self._arrived = arrived
        self._free = free or free_bytes
        self._jobs: dict[str, _Job] = {}
        self._incoming = Incoming(
            directory, pace=pace or Pace(), room=self._look_at_space, on_change=self._target_changed
        )
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._starting = asyncio.Lock()
        self._watchers: set[Watcher] = set()
        self._dirty = asyncio.Event()
        self._moving = asyncio.Event()
        """A download may be under way: an idle daemon is not to wake for nothing."""
        self._keeping = asyncio.Lock()
        self._keepers: list[asyncio.Task[None]] = []

    # ── life ──────────────────────────────────────────────────────────────────────────────────

    async def open(self) -> None:
        """Read the ledger and go on with what was going on."""
        contents = await asyncio.to_thread(self._ledger.load)
        self._incoming.partials = contents.partials
        self._jobs = {record.id: _Job(record) for record in contents.downloads}
        self._keepers = [asyncio.create_task(self._keep()), asyncio.create_task(self._tick())]
        for job in self._jobs.values():
            if job.record.state not in RESTING:
                log.info("going on with the download of %s", job.record.name)
                self._run(job)

    async def close(self) -> None:
        """Stop all transfers where they are; the next `open` goes on. Ends every subscription."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in [*tasks, *self._keepers]:
            task.cancel()
        await asyncio.gather(*tasks, *self._keepers, return_exceptions=True)
        await self._saved()
        for watcher in self._watchers:
            watcher.end()

    # ── what is there ─────────────────────────────────────────────────────────────────────────

    def rows(self) -> list[DownloadRow]:
        """The latest first."""
        return [self._row(job) for job in reversed(self._jobs.values())]

    def find(self, id: str) -> DownloadRow:
        """DownloadNotFound."""
        return self._row(self._job(id))

    async def subscribe(self, id: str | None = None) -> AsyncGenerator[DownloadRow, None]:
        """The row at once, then after each change, some of which may be told together. Without ``id``: of all.

        Of one download: ends with the row in which it rests. Ends when `close` does. DownloadNotFound.
        """
        if id is not None:
            self._job(id)
        watcher = Watcher()
        self._watchers.add(watcher)
        try:
            for job in self._jobs.values():
                if job.record.id == id or (id is None and job.record.state not in ENDED):
                    watcher.put(job.record.id)
            while (changed := await watcher.get()) is not None:
                for one in changed:
                    if (id is None or one == id) and one in self._jobs:
                        row = self._row(self._jobs[one])
                        yield row
                        if id is not None and row.state in RESTING:
                            return
        finally:
            self._watchers.discard(watcher)

    # ── what a person asks for ────────────────────────────────────────────────────────────────

    async def plan(
        self, model: str, quantization: str | None = None, format: Format | None = None
    ) -> tuple[Reference, Repository, tuple[Variant, ...]]:
        """What ``model`` (owner/repo, owner/repo@quant, a link) names on the hub. Asks the hub."""
        reference = parse_reference(model, self.hub.endpoint)
        if reference is None:
            raise InvalidRequest(
                f"'{model[:200]}' names no repository of the hub.",
                hint="Say owner/repo, owner/repo@q4_k_m or a link; 'lmctl get' searches for words.",
                param="model",
            )
        if quantization:
            reference = Reference(reference.owner, reference.repo, reference.revision, reference.path, quantization)
        repository = await self.hub.repository(reference.name, reference.revision)
        return reference, repository, variants(repository, format)

    async def start(self, model: str, quantization: str | None = None, format: Format | None = None) -> DownloadRow:
        """Begin to fetch, or join what fetches the same already (a paused or failed one goes on).

        Where all is on disk: a row in the state "completed" with ``already``, whose ``id`` is "" if nobody remembers
        its download.
        """
        reference, repository, found = await self.plan(model, quantization, format)
        variant = choose(found, reference, self.room())
        async with self._starting:
            return await self._begin(repository, variant)

    async def _begin(self, repository: Repository, variant: Variant) -> DownloadRow:
        files = self.targets(repository, variant)
        same = next((job for job in reversed(self._jobs.values()) if job.record.is_for(files)), None)
        if same is not None and same.record.state not in ENDED:
            return await self.resume(same.record.id) if same.record.state in RESTING else self._row(same)
        missing = [file for file in files if not self._is_current(file)]
        if not missing:
            return await self._already(repository, variant, files)
        for job in list(self._jobs.values()):
            if job.record.state not in ENDED and job.record.clashes_with(files):
                if job.record.state != "failed":
                    raise Conflict(
                        f"Another version of {repository.name} is being fetched to the same place ({job.record.id}).",
                        hint=f"Cancel that one first: lmctl downloads cancel {job.record.id}",
                    )
                await self.cancel(job.record.id)
        job = _Job(new_record(repository, variant, files))
        for file in missing:
            await asyncio.to_thread(self._incoming.prepare, file)
        await self._check_space(job)
        self._jobs[job.record.id] = job
        self._forget_old()
        log.info("download %s begins: %s", job.record.id, job.record.name)
        self._run(job)
        await self._saved()
        return self._row(job)

    async def _already(self, repository: Repository, variant: Variant, files: list[Entry]) -> DownloadRow:
        done = (job for job in self._jobs.values() if job.record.state == "completed")
        known = next((job for job in done if job.record.is_for(files)), None)
        row = self._row(known or _Job(new_record(repository, variant, files)))
        row.id, row.state, row.received, row.already = row.id if known else "", "completed", row.size, True
        row.key = await self._arrived([Path(file.target) for file in files])
        return row

    async def pause(self, id: str) -> DownloadRow:
        job = self._job(id)
        self._refuse_ended(job)
        if job.record.state not in RESTING:
            await self._stop(job, "paused")
        return self._row(job)

    async def resume(self, id: str) -> DownloadRow:
        job = self._job(id)
        self._refuse_ended(job)
        if job.record.state in RESTING:
            await self._check_space(job)
            if job.record.state in RESTING:  # still: the check was in a thread
                self._run(job)
            await self._saved()
        return self._row(job)

    async def cancel(self, id: str) -> DownloadRow:
        """Stop it and remove what it has fetched, but what another download needs as well."""
        job = self._job(id)
        if job.record.state != "cancelled":
            self._refuse_ended(job)
            await self._stop(job, "cancelled")
            needed = {file.target for other in self._unended() for file in other.record.files}
            gone = [file for file in job.record.files if file.target not in needed]
            self._incoming.forget(gone)
            await asyncio.to_thread(self._incoming.remove, gone)
            await self._saved()
        return self._row(job)

    def _refuse_ended(self, job: _Job) -> None:
        record = job.record
        if record.state == "completed":
            raise Conflict(
                f"The download {record.id} is complete.",
                hint=f"The model is {record.key or record.model}; 'lmctl rm' removes it.",
            )
        if record.state == "cancelled":
            raise Conflict(f"The download {record.id} was cancelled.", hint=f"Begin anew: lmctl get {record.name}")

    # ── where things go ───────────────────────────────────────────────────────────────────────

    def targets(self, repository: Repository, variant: Variant) -> list[Entry]:
        """Where the files of ``variant`` go: into one directory, where the library looks for the vision part.

        The repository's own directories are kept only where the files' names do not tell quantizations apart.
        """
        folder = self.directory.joinpath(*repository.name.split("/"))
        inside = PurePosixPath(variant.parts[0].path).parent
        if variant.format == "gguf" and not quantization_of(PurePosixPath(variant.parts[0].path).name):
            folder = folder.joinpath(*inside.parts)
        return [
            Entry(file.path, str(folder / PurePosixPath(file.path).name), file.size, file.sha256, file.blob)
            for file in variant.files
        ]

    def is_on_disk(self, repository: Repository, variant: Variant) -> bool:
        """Blocks shortly."""
        return all(self._is_current(file) for file in self.targets(repository, variant))

    def _is_current(self, file: Entry) -> bool:
        """It is there under its name, in its size, and not known to be of another version."""
        if not self._incoming.has(file):
            return False
        fetched = (
            entry
            for job in reversed(self._jobs.values())
            if job.record.state == "completed"
            for entry in job.record.files
            if entry.target == file.target
        )
        last = next(fetched, file)
        return (last.sha256, last.blob) == (file.sha256, file.blob)

    # ── running ───────────────────────────────────────────────────────────────────────────────

    def _run(self, job: _Job) -> None:
        record = job.record
        record.state, record.error, record.code, record.hint = "queued", None, "", None
        job.rate.clear()
        job.task = asyncio.create_task(self._work(job))
        self._changed(job, keep=True)

    async def _work(self, job: _Job) -> None:
        """The life of one download. Ends resting; when it is cancelled, the one who did that says what it is now."""
        record = job.record
        try:
            async with self._slots:
                record.state = "downloading"
                self._moving.set()
                self._changed(job, keep=True)
                await self._check_space(job)
                for file in record.files:
                    await self._incoming.fetch(file, self._source(record, file), job.watch)
                job.transfer = None
            # From here on it is no longer half a download: a cancellation comes too late.
            await whole(self._finish(job))
        except LmdError as error:
            self._fail(job, error)
        except OSError as error:
            self._fail(job, disk_error(error, self.directory))
        except Exception:
            log.exception("The download %s failed inside lmd", record.id)
            self._fail(job, LmdError("Something went wrong inside lmd.", hint="Its log says more."))
        finally:
            job.transfer = None
        self._changed(job, keep=True)

    async def _finish(self, job: _Job) -> None:
        record = job.record
        await asyncio.to_thread(self._incoming.publish, record.files)
        self._incoming.forget(record.files)
        record.key = await self._arrived([Path(file.target) for file in record.files])
        record.state, record.finished_at = "completed", time.time()
        log.info("download %s is complete: %s", record.id, record.name)
        self._changed(job, keep=True)

    def _fail(self, job: _Job, error: LmdError) -> None:
        record = job.record
        record.state, record.finished_at = "failed", time.time()
        record.error, record.code, record.hint = error.message, error.code, error.hint
        log.error("download %s of %s failed: %s", record.id, record.name, error)

    def _source(self, record: Record, file: Entry) -> Source:
        return Source(
            f"{record.model}: {file.path}",
            self.hub.url(record.model, record.revision, file.path),
            self.hub.endpoint,
            self.hub.token,
        )

    async def _stop(self, job: _Job, state: str) -> None:
        if job.task is not None and not job.task.done():
            job.task.cancel()
            await asyncio.wait([job.task])
        self._refuse_ended(job)  # it came to its end meanwhile
        job.record.state, job.record.finished_at = state, time.time() if state in ENDED else 0.0
        self._changed(job, keep=True)
        await self._saved()

    # ── space ─────────────────────────────────────────────────────────────────────────────────

    async def _check_space(self, job: _Job) -> None:
        """DiskFull where the download cannot end well."""
        others = sum(
            self._missing(other)
            for other in self._unended()
            if other is not job and other.record.state not in RESTING | {"queued"}
        )
        free = await asyncio.to_thread(self._free, self.directory)
        check_space(job.record.name, self.directory, needed=self._missing(job), others=others, free=free)

    def _missing(self, job: _Job) -> int:
        return sum(file.size - self._incoming.received(file) for file in job.record.files)

    def _look_at_space(self) -> None:
        """While a file grows. Blocks."""
        check_space("The download", self.directory, needed=0, others=0, free=self._free(self.directory))

    # ── telling and keeping ───────────────────────────────────────────────────────────────────

    def _row(self, job: _Job) -> DownloadRow:
        record, transfer = job.record, job.transfer
        files = [DownloadFile(file.path, file.size, self._received(record, file)) for file in record.files]
        size, received = sum(file.size for file in files), sum(file.received for file in files)
        row = DownloadRow(
            id=record.id,
            model=record.model,
            quantization=record.quantization,
            state=record.state,
            size=size,
            received=received,
            files=files,
            directory=str(self.directory / record.model),
            format=record.format,
            key=record.key,
            created_at=record.created_at,
            finished_at=record.finished_at,
            error=record.error,
            code=record.code,
            hint=record.hint,
        )
        if record.state == "downloading" and transfer is not None:
            row.state = transfer.state if transfer.state != "queued" else "downloading"
            row.note = transfer.note
            if row.state == "waiting":
                row.retry_in = max(0.0, transfer.retry_at - time.monotonic())
            elif rate := job.rate.bytes_per_second:
                row.rate, row.eta = rate, (size - received) / rate
        return row

    def _received(self, record: Record, file: Entry) -> int:
        return file.size if record.state == "completed" else self._incoming.received(file)

    def _changed(self, job: _Job, *, keep: bool = False) -> None:
        if keep:
            self._dirty.set()
        for watcher in self._watchers:
            watcher.put(job.record.id)

    def _target_changed(self, target: str) -> None:
        self._dirty.set()
        for job in self._unended():
            if any(file.target == target for file in job.record.files):
                self._changed(job)

    async def _tick(self) -> None:
        """Progress, to those who watch."""
        while True:
            await self._moving.wait()
            await asyncio.sleep(TICK_SECONDS)
            now, unended = time.monotonic(), self._unended()
            if all(job.record.state != "downloading" for job in unended):
                self._moving.clear()
            for job in unended:
                if job.transfer is not None:
                    job.rate.add(now, sum(self._received(job.record, file) for file in job.record.files))
                    self._changed(job)

    async def _keep(self) -> None:
        """Writes the ledger after each change of what it holds; many at once become one."""
        while True:
            await self._dirty.wait()
            await self._saved()

    async def _saved(self) -> None:
        """The ledger is on disk as all is now."""
        async with self._keeping:
            self._dirty.clear()
            contents = Contents(downloads=[job.record for job in self._jobs.values()], partials=self._incoming.partials)
            try:
                await whole(asyncio.to_thread(self._ledger.save, encode(contents)))
            except OSError as exc:
                log.error("The list of downloads cannot be written: %s", exc)

    def _forget_old(self) -> None:
        ended = [id for id, job in self._jobs.items() if job.record.state in ENDED]
        for id in ended[: max(0, len(ended) - HISTORY)]:
            del self._jobs[id]

    def _unended(self) -> list[_Job]:
        return [job for job in self._jobs.values() if job.record.state not in ENDED]

    def _job(self, id: str) -> _Job:
        if id not in self._jobs:
            raise DownloadNotFound(f"There is no download '{id[:60]}'.", hint="See 'lmctl downloads'.", param="id")
        return self._jobs[id]
