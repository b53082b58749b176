"""One file's way from the hub to the disk: ranged requests into ``FILE.part`` until its checksum is right.

Not huggingface_hub's own download, because that can be watched only by its progress bar, cannot be paused, goes on
with a partial file without If-Range, and leaves the SHA-256 that the hub tells unchecked.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import aiohttp

from lmd.errors import DiskFull, HubError, LmdError, Overloaded
from lmd.library import tls
from lmd.library.hub import Passing, refusal, retry_after

log = logging.getLogger(__name__)

_PIECE = 1 << 20
"""Bytes written and hashed at a time, in a thread; on a slow line fewer, so that the file grows each second."""
_SYNC = 256 << 20
"""Bytes after which the kernel is made to write: a later fsync then is no long halt."""
_LOOK = 32 << 20
"""Bytes between two looks at the free space."""
_REDIRECTS = 10
_CORRUPT = 3
"""Whole files with a wrong checksum before we give up. Which part is wrong cannot be told: the hub has one sum."""
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(\d{1,18}|\*)")


@dataclass(frozen=True, slots=True)
class Pace:
    """Patience, in seconds."""

    stall: float = 30.0
    """Without a byte for so long, a connection is given up."""
    first: float = 1.0
    """The pause before the second try; it doubles with each try that brings nothing."""
    longest: float = 60.0
    tries: int = 12
    """That brought nothing, one after the other, before a person has to say go on."""

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Pace:
        """``HF_HUB_DOWNLOAD_TIMEOUT``, as huggingface_hub reads it: seconds that a silent connection is waited for."""
        try:
            stall = float(environ.get("HF_HUB_DOWNLOAD_TIMEOUT", ""))
        except ValueError:
            return cls()
        return cls(stall=stall) if 0 < stall < 3600 else cls()

    def pause(self, fruitless: int, jitter: float) -> float:
        """The pause after ``fruitless`` tries (1…) that brought nothing. ``jitter`` 0…1 spreads it by half."""
        return min(self.longest, self.first * 2.0 ** min(fruitless - 1, 16)) * (0.75 + 0.5 * jitter)


@dataclass(slots=True)
class Partial:
    """What is known of a ``.part`` file beside its bytes; kept on disk by the ledger."""

    size: int
    sha256: str | None = None
    blob: str | None = None
    etag: str | None = None
    """Of the server that the bytes came from, where it is a strong one."""
    verified: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    """As messages have it: ``owner/repo: file``."""
    url: str
    endpoint: str
    token: Callable[[], Awaitable[str | None]]


class _Again(Exception):
    """This connection is over; the next one may do better."""

    def __init__(self, reason: str, wait: float | None = None, error: LmdError | None = None) -> None:
        super().__init__(reason)
        self.wait = wait
        self.error = error


class Transfer:
    """Fetches one file. ``run`` once; cancel it to stop. What it has stays in the ``.part`` file."""

    def __init__(
        self,
        source: Source,
        partial: Partial,
        part: Path,
        *,
        pace: Pace,
        on_change: Callable[[], None],
        room: Callable[[], None],
    ) -> None:
        """``on_change``: state, or what the ledger keeps, changed. ``room`` raises DiskFull where little is left."""
        self.source = source
        self.partial = partial
        self.part = part
        self.state = "queued"
        """queued, downloading, waiting or verifying."""
        self.received = _size_of(part)
        self.note = ""
        self.retry_at = 0.0
        """Monotonic time of the next try, while waiting."""
        self._pace = pace
        self._on_change = on_change
        self._room = room
        self._digest = _Digest(partial)
        self._file: int = -1
        self._synced = 0
        self._looked = 0

    async def run(self) -> None:
        """Returns when the ``.part`` file is whole, right and on disk. LmdError when that will not be."""
        if self.partial.verified and self.received == self.partial.size:
            return
        try:
            await whole(asyncio.to_thread(self._open))
            await self._rehash()
            async with aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=await asyncio.to_thread(tls.verifying)),
                trust_env=True,
                auto_decompress=False,
                headers={"User-Agent": "lmd", "Accept-Encoding": "identity"},
            ) as session:
                await self._fetch(session)
        except OSError as exc:
            raise disk_error(exc, self.part) from exc
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    async def _fetch(self, session: aiohttp.ClientSession) -> None:
        fruitless = corrupt = 0
        while True:
            before = self.received
            try:
                if self.received < self.partial.size:
                    self._become("downloading")
                    await self._connection(session)
                self._become("verifying")
                if await self._is_right():
                    return
                corrupt += 1
                if corrupt == _CORRUPT:
                    raise HubError(
                        f"{self.source.name} arrived {_CORRUPT} times with a checksum other than the hub's.",
                        hint="Something on the way changes it (a proxy, bad memory, a bad disk). Look for that first.",
                    )
                await self._restart()
                raise _Again("its checksum is not the hub's; it is fetched anew", wait=0.0)
            except _Again as again:
                fruitless = 1 if self.received > before else fruitless + 1
                if fruitless > self._pace.tries:
                    raise again.error or HubError(
                        f"{self.source.name} does not get on: {again}.",
                        hint="What has come is kept. 'lmctl downloads resume' goes on from there.",
                    ) from again
                wait = self._pace.pause(fruitless, random.random()) if again.wait is None else again.wait
                log.info("%s: %s; next try in %.1f s", self.source.name, again, wait)
                await self._wait(wait, str(again))

    async def _wait(self, seconds: float, note: str) -> None:
        self.note, self.retry_at = note, time.monotonic() + seconds
        self._become("waiting")
        await asyncio.sleep(seconds)
        self.note, self.retry_at = "", 0.0

    def _become(self, state: str) -> None:
        if self.state != state:
            self.state = state
            self._on_change()

    # ── one connection ────────────────────────────────────────────────────────────────────────

    async def _connection(self, session: aiohttp.ClientSession) -> None:
        try:
            await self._follow(session, self.source.url)
        except TimeoutError as exc:
            raise _Again(f"no byte came for {self._pace.stall:g} s") from exc
        except (aiohttp.ClientError, ConnectionError) as exc:
            raise _Again(_reason(exc)) from exc
        if self.received < self.partial.size:
            raise _Again("the connection ended early")

    async def _follow(self, session: aiohttp.ClientSession, url: str) -> None:
        """Redirects are followed by hand: the token is for the hub alone, and its own headers are worth reading."""
        token = await self.source.token()
        for _ in range(_REDIRECTS):
            at_hub = _origin(url) == _origin(self.source.endpoint)
            headers = self._request_headers(token if at_hub else None)
            async with asyncio.timeout(self._pace.stall):
                response = await session.get(
                    url, headers=headers, allow_redirects=False, timeout=aiohttp.ClientTimeout(total=None)
                )
            async with response:
                told = {key.lower(): value for key, value in response.headers.items()}
                if at_hub:
                    self._check_identity(told, moved=response.status // 100 == 3)
                if response.status in (301, 302, 303, 307, 308) and "location" in told:
                    url = _next(url, told["location"])
                    continue
                if response.status in (200, 206):
                    await self._receive(response, told)
                    return
                raise await self._refused(response.status, told, at_hub=at_hub, has_token=token is not None)
        raise _Again(f"more than {_REDIRECTS} redirects")

    def _request_headers(self, token: str | None) -> dict[str, str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        if self.received:
            headers["Range"] = f"bytes={self.received}-"
            if self.partial.etag:
                headers["If-Range"] = self.partial.etag
        return headers

    def _check_identity(self, told: Mapping[str, str], *, moved: bool) -> None:
        """The hub tells a large file's SHA-256 as its ETag, and a small one's git hash."""
        linked = told.get("x-linked-etag") or ("" if moved else told.get("etag", ""))
        said = linked.removeprefix("W/").strip('"')
        known = self.partial.sha256 if len(said) == 64 else self.partial.blob if len(said) == 40 else None
        if known and said and said != known:
            raise self._changed()

    def _changed(self) -> HubError:
        return HubError(
            f"{self.source.name} has been changed on the hub since this download began.",
            hint="'lmctl get' it anew, which begins from the start: parts of two versions make no whole.",
        )

    async def _refused(self, status: int, told: Mapping[str, str], *, at_hub: bool, has_token: bool) -> Exception:
        if status == 416:
            total = _CONTENT_RANGE.fullmatch(told.get("content-range", ""))
            if total and total[3] not in ("*", str(self.partial.size)):
                return self._changed()
            await self._restart()
            return _Again("the server refuses to go on where the connection ended; the file is fetched anew")
        error = refusal(status, told, self.source.name, self.source.endpoint, has_token)
        if isinstance(error, Overloaded):
            return _Again("the hub asks for a pause", error.retry_after, error)
        if isinstance(error, Passing):
            return _Again(f"the server answers {status}", retry_after(told), error)
        # The place that the hub pointed to: its links end after a while, and the hub gives a new one.
        return error if at_hub else _Again(f"the server behind the hub answers {status}", error=error)

    async def _receive(self, response: aiohttp.ClientResponse, told: Mapping[str, str]) -> None:
        if told.get("content-encoding", "identity") != "identity":
            raise _Again(f"the server sends it as {told['content-encoding']}, which nobody asked for")
        etag = told.get("etag", "")
        strong = etag if etag.startswith('"') else None
        is_known = self.partial.sha256 is not None or (strong is not None and strong == self.partial.etag)
        if self.received and not is_known:
            # Nothing says that these are bytes of the same file.
            await self._restart()
            if response.status == 206:
                raise _Again("the file may have been changed; it is fetched anew", wait=0.0)
        skip = 0
        if response.status == 206:
            span = _CONTENT_RANGE.fullmatch(told.get("content-range", ""))
            if not span or span[1] is None or int(span[1]) != self.received:
                raise _Again("the server sends another range than was asked for")
            if span[3] not in ("*", str(self.partial.size)):
                raise self._changed()
        else:
            if response.content_length not in (None, self.partial.size):
                raise self._changed()
            skip = self.received  # it cannot do ranges: what we have comes again, and passes by
        if strong != self.partial.etag:
            self.partial.etag = strong
            self._on_change()
        await self._store_all(response, skip)

    async def _store_all(self, response: aiohttp.ClientResponse, skip: int) -> None:
        held = bytearray()
        stored = time.monotonic()
        try:
            while True:
                async with asyncio.timeout(self._pace.stall):
                    chunk = await response.content.readany()
                if not chunk:
                    break
                if skip:
                    passed = min(skip, len(chunk))
                    skip, chunk = skip - passed, chunk[passed:]
                held += chunk
                if self.received + len(held) > self.partial.size:
                    del held[self.partial.size - self.received :]
                    break
                if len(held) >= _PIECE or time.monotonic() - stored >= 1.0:
                    await self._store(held)
                    stored = time.monotonic()
        finally:
            # Also what came before a cut: on a bad line each piece counts. A cancelled task does not wait for it.
            if held and not _cancelling():
                await self._store(held)

    # ── the disk ──────────────────────────────────────────────────────────────────────────────

    async def _store(self, held: bytearray) -> None:
        data = bytes(held)
        if self.received - self._looked >= _LOOK:
            self._looked = self.received
            await asyncio.to_thread(self._room)
        # Shielded: a cancelled task must not leave a thread writing behind its back.
        await whole(asyncio.to_thread(self._write, data))
        held.clear()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        at = self.received
        while view:
            n = os.pwrite(self._file, view, at)
            at, view = at + n, view[n:]
        self._digest.update(data)
        self.received = at
        if at - self._synced >= _SYNC:
            os.fdatasync(self._file)
            self._synced = at

    def _open(self) -> None:
        """The ``.part`` file, never through a symbolic link, and never longer than the file is to be."""
        self.part.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        if os.fstat(self._file).st_size > self.partial.size:
            os.ftruncate(self._file, 0)
        self.received = os.fstat(self._file).st_size

    async def _rehash(self) -> None:
        """Take what an earlier run left into the checksum."""
        at = 0
        while at < self.received:
            if at == 0:
                self._become("verifying")
            data = await asyncio.to_thread(os.pread, self._file, 8 * _PIECE, at)
            await whole(asyncio.to_thread(self._digest.update, data))
            at += len(data)
            if not data:
                break

    async def _restart(self) -> None:
        self.partial.etag, self.partial.verified = None, False
        await asyncio.to_thread(os.ftruncate, self._file, 0)
        self._digest = _Digest(self.partial)
        self.received = self._synced = self._looked = 0
        self._on_change()

    async def _is_right(self) -> bool:
        if not self._digest.is_right():
            return False
        await asyncio.to_thread(os.fsync, self._file)
        self.partial.verified = True
        self._on_change()
        return True


class _Digest:
    """The running checksum of a file: SHA-256 where the hub tells it, else git's SHA-1 of the blob, else none."""

    def __init__(self, partial: Partial) -> None:
        self._wanted = partial.sha256 or partial.blob
        self._hash = hashlib.sha256() if partial.sha256 else hashlib.sha1(usedforsecurity=False)
        if not partial.sha256:
            self._hash.update(b"blob %d\0" % partial.size)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def is_right(self) -> bool:
        return self._wanted is None or self._hash.hexdigest() == self._wanted


async def whole(work: Awaitable[None]) -> None:
    """``work`` to its end, also when the task is cancelled meanwhile; then that is raised."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


def _cancelling() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc


def _next(url: str, location: str) -> str:
    following = urljoin(url, location)
    scheme = urlsplit(following).scheme
    if scheme != "https" and not (scheme == "http" and urlsplit(url).scheme == "http"):
        raise HubError(f"{urlsplit(url).netloc} sends us on to an insecure place: {following[:200]}.")
    return following


def _reason(error: Exception) -> str:
    text = str(error).strip().split("\n", maxsplit=1)[0][:200]
    return f"the connection broke ({text})" if text else f"the connection broke ({type(error).__name__})"


def disk_error(error: OSError, path: Path) -> LmdError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(
            f"The disk is full: {path} cannot grow.",
            hint="Make room ('lmctl ls', 'lmctl rm'), then 'lmctl downloads resume'. What has come is kept.",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return LmdError(
            f"lmd may not write {path}: {error.strerror}.",
            hint="The first directory of [paths] models must be writable for lmd's user.",
        )
    return LmdError(f"{path} cannot be written: {error.strerror or error}.", hint="Look at the disk and its log.")
