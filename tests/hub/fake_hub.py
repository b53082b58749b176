"""The Hugging Face hub's HTTP protocol, as far as lmd speaks it, from files in memory; with faults on demand.

Two servers: the hub itself (search, model info, tree, resolve), and the storage that large files' resolve links
redirect to, on another origin as in life. What the hub really answers was read from its documentation and from
huggingface_hub's source: https://huggingface.co/docs/hub/api.
"""

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PIECE = 256 * 1024


class Content:
    """A file's bytes: given, or ``size`` of them made up from a seed, which cost no memory and little time."""

    def __init__(self, data: bytes | None = None, *, size: int = 0, seed: int = 0) -> None:
        self._data = data
        self.size = size if data is None else len(data)
        self._block = hashlib.shake_128(b"%d" % seed).digest(1 << 20) if data is None else b""
        digest = hashlib.sha256()
        blob = hashlib.sha1(b"blob %d\0" % self.size)
        for piece in self.pieces(0, self.size, 1 << 22):
            digest.update(piece)
            blob.update(piece)
        self.sha256, self.blob = digest.hexdigest(), blob.hexdigest()

    def pieces(self, start: int, end: int, length: int = PIECE) -> Iterator[bytes]:
        while start < end:
            n = min(length, end - start)
            yield self._data[start : start + n] if self._data is not None else self._made(start, n)
            start += n

    def _made(self, start: int, n: int) -> bytes:
        """The block over and over, each time with its number in front, so that no two places look alike."""
        size = len(self._block)
        first, last = start // size, (start + n - 1) // size
        whole = b"".join(b"%016d" % number + self._block[16:] for number in range(first, last + 1))
        return whole[start - first * size :][:n]


@dataclass
class Repo:
    files: dict[str, Content]
    downloads: int = 0
    likes: int = 0
    tags: tuple[str, ...] = ("gguf",)
    gated: bool = False
    private: bool = False
    lfs_above: int = 1 << 10
    """Bytes from which on a file is in LFS: told with its SHA-256, and served by the storage."""

    @property
    def commit(self) -> str:
        return hashlib.sha1(repr(sorted((name, c.sha256) for name, c in self.files.items())).encode()).hexdigest()


@dataclass
class Fault:
    """Befalls one answer with a file's bytes, from the storage or (small files) from the hub."""

    cut_after: int | None = None
    """Close the connection after so many bytes."""
    stall_after: int | None = None
    """Send nothing more after so many bytes, until the client goes."""
    corrupt_at: int | None = None
    """Flip a bit of the byte at this place of the file, if it is sent."""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    ignore_range: bool = False
    wrong_range: bool = False
    no_length: bool = False
    encoding: str = ""


@dataclass
class Request:
    """One that was served."""

    at: str
    """hub or storage."""
    path: str
    range: str | None
    authorization: str | None
    if_range: str | None = None


@dataclass
class FakeHub:
    repos: dict[str, Repo] = field(default_factory=dict)
    faults: deque[Fault | None] = field(default_factory=deque)
    """For the next answers with bytes, in turn; None: this one goes well."""
    api_faults: deque[Fault] = field(default_factory=deque)
    """For the next answers of /api (``status`` and ``headers``)."""
    resolve_faults: deque[Fault] = field(default_factory=deque)
    """For the next answers of the hub's resolve (``status`` and ``headers``)."""
    token: str = "hf_right"
    granted: bool = True
    """Whether the token's account has access to gated repositories."""
    rate: float = 0.0
    """Bytes per second of each answer; 0: as fast as it goes."""
    requests: list[Request] = field(default_factory=list)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when an answer has begun to stall."""
    sent: int = 0
    """Bytes of files, in all."""
    hold: asyncio.Event | None = None
    """Every answer with bytes waits for it after its first piece."""
    held: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    storage_url: str = ""
    open: int = 0
    """Answers with bytes that are under way."""
    most_open: int = 0

    def add(self, name: str, files: dict[str, bytes | Content], **more: Any) -> Repo:
        made = {path: one if isinstance(one, Content) else Content(one) for path, one in files.items()}
        self.repos[name] = Repo(made, **more)
        return self.repos[name]

    def asked_for(self, path: str, at: str = "storage") -> list[Request]:
        """The requests for a file's bytes, in order."""
        return [one for one in self.requests if one.at == at and one.path.endswith(path)]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["FakeHub"]:
        runners = []
        for routes in (
            [
                web.get("/api/models", self._search),
                web.get("/api/models/{owner}/{repo}", self._info),
                web.get("/api/models/{owner}/{repo}/revision/{revision}", self._info),
                web.get("/api/models/{owner}/{repo}/tree/{revision}", self._tree),
                web.get("/{owner}/{repo}/resolve/{revision}/{path:.+}", self._resolve),
            ],
            [web.get("/{sha256}/{name}", self._storage)],
        ):
            app = web.Application()
            app.add_routes(routes)
            runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            runners.append((runner, f"http://127.0.0.1:{runner.addresses[0][1]}"))
        self.url, self.storage_url = (url for _, url in runners)
        try:
            yield self
        finally:
            for runner, _ in runners:
                await runner.cleanup()

    # ── API ──

    async def _search(self, request: web.Request) -> web.Response:
        self._record("hub", request)
        if (refused := self._fault(self.api_faults)) is not None:
            return refused
        words = request.query.get("search", "").lower().split()
        wanted = set(request.query.getall("filter", []))
        found = [
            (name, repo)
            for name, repo in self.repos.items()
            if all(word in name.lower() for word in words) and wanted <= set(repo.tags) and self._sees(request, repo)
        ]
        if request.query.get("sort") == "downloads":
            found.sort(key=lambda pair: -pair[1].downloads)
        limit = int(request.query.get("limit", "1000"))
        return web.json_response([self._model(name, repo, blobs=False) for name, repo in found[:limit]])

    async def _info(self, request: web.Request) -> web.Response:
        self._record("hub", request)
        if (refused := self._fault(self.api_faults)) is not None:
            return refused
        name, repo = self._repo(request)
        self._check_revision(request, repo)
        # Blobs are asked for as ?blobs=True; the hub takes any spelling of it.
        return web.json_response(self._model(name, repo, blobs=request.query.get("blobs", "").lower() in ("true", "1")))

    async def _tree(self, request: web.Request) -> web.Response:
        self._record("hub", request)
        if (refused := self._fault(self.api_faults)) is not None:
            return refused
        _, repo = self._repo(request)
        self._check_revision(request, repo)
        return web.json_response(
            [
                {"type": "file", "path": path, "oid": one.blob, "size": one.size}
                | ({"lfs": _lfs(one) | {"oid": one.sha256}} if one.size >= repo.lfs_above else {})
                for path, one in repo.files.items()
            ]
        )

    def _model(self, name: str, repo: Repo, *, blobs: bool) -> dict[str, Any]:
        siblings = []
        for path, one in repo.files.items():
            told: dict[str, Any] = {"rfilename": path}
            if blobs:
                told |= {"size": one.size, "blobId": one.blob}
                if one.size >= repo.lfs_above:
                    told["lfs"] = _lfs(one)
            siblings.append(told)
        return {
            "_id": hashlib.md5(name.encode()).hexdigest()[:24],
            "id": name,
            "modelId": name,
            "author": name.partition("/")[0],
            "sha": repo.commit,
            "lastModified": "2026-05-04T03:02:01.000Z",
            "createdAt": "2026-01-02T03:04:05.000Z",
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "disabled": False,
            "downloads": repo.downloads,
            "likes": repo.likes,
            "tags": list(repo.tags),
            "siblings": siblings,
        }

    # ── files ──

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        self._record("hub", request)
        if (refused := self._fault(self.resolve_faults)) is not None:
            return refused
        name, repo = self._repo(request)
        if repo.gated and not (self._knows(request) and self.granted):
            raise _refusal(403 if self._knows(request) else 401, "GatedRepo", f"Access to model {name} is restricted.")
        self._check_revision(request, repo)
        path = request.match_info["path"]
        if path not in repo.files:
            raise _refusal(404, "EntryNotFound", "Entry not found")
        content = repo.files[path]
        headers = {"X-Repo-Commit": repo.commit, "Accept-Ranges": "bytes"}
        if content.size < repo.lfs_above:
            return await self._send(request, content, headers | {"ETag": f'"{content.blob}"'})
        headers |= {
            "X-Linked-Size": str(content.size),
            "X-Linked-ETag": f'"{content.sha256}"',
            "Location": f"{self.storage_url}/{content.sha256}/{path.rsplit('/', 1)[-1]}?signature=x",
        }
        return web.Response(status=302, headers=headers)

    async def _storage(self, request: web.Request) -> web.StreamResponse:
        self._record("storage", request)
        wanted = request.match_info["sha256"]
        content = next(
            (one for repo in self.repos.values() for one in repo.files.values() if one.sha256 == wanted), None
        )
        if content is None:
            raise web.HTTPNotFound
        return await self._send(request, content, {"ETag": f'"{content.blob}"', "Accept-Ranges": "bytes"})

    async def _send(self, request: web.Request, content: Content, headers: dict[str, str]) -> web.StreamResponse:
        fault = (self.faults.popleft() if self.faults else None) or Fault()
        if fault.status is not None:
            return web.Response(status=fault.status, headers=fault.headers)
        start, status = 0, 200
        span = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
        same = request.headers.get("If-Range", headers["ETag"]) == headers["ETag"]
        if span and same and not fault.ignore_range:
            start, status = int(span[1]), 206
            if start >= content.size:
                return web.Response(status=416, headers={"Content-Range": f"bytes */{content.size}"})
            shown = start + 7 if fault.wrong_range else start
            headers |= {"Content-Range": f"bytes {shown}-{content.size - 1}/{content.size}"}
        response = web.StreamResponse(status=status, headers=headers | fault.headers)
        if fault.encoding:
            response.headers["Content-Encoding"] = fault.encoding
        if not fault.no_length:
            response.content_length = content.size - start
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await response.prepare(request)
            await self._stream(request, response, content, start, fault)
        finally:
            self.open -= 1
        return response

    async def _stream(
        self, request: web.Request, response: web.StreamResponse, content: Content, start: int, fault: Fault
    ) -> None:
        sent = 0
        stops = [n for n in (fault.cut_after, fault.stall_after) if n is not None]
        end = min([content.size, *(start + n for n in stops)])
        for piece in content.pieces(start, end):
            at = start + sent
            if fault.corrupt_at is not None and at <= fault.corrupt_at < at + len(piece):
                flipped = bytearray(piece)
                flipped[fault.corrupt_at - at] ^= 1
                piece = bytes(flipped)  # noqa: PLW2901
            await response.write(piece)
            sent += len(piece)
            self.sent += len(piece)
            if self.hold is not None:
                self.held.set()
                await self.hold.wait()
            if self.rate:
                await asyncio.sleep(len(piece) / self.rate)
        if fault.stall_after is not None:
            self.stalled.set()
            await asyncio.Event().wait()
        if fault.cut_after is not None and request.transport is not None:
            # What has been written goes out before the end, as it would on a line that breaks later.
            request.transport.close()

    # ── who may what ──

    def _record(self, at: str, request: web.Request) -> None:
        get = request.headers.get
        self.requests.append(Request(at, request.path, get("Range"), get("Authorization"), get("If-Range")))

    def _knows(self, request: web.Request) -> bool:
        return request.headers.get("Authorization") == f"Bearer {self.token}"

    def _sees(self, request: web.Request, repo: Repo) -> bool:
        return not repo.private or self._knows(request)

    def _repo(self, request: web.Request) -> tuple[str, Repo]:
        name = f"{request.match_info['owner']}/{request.match_info['repo']}"
        given = request.headers.get("Authorization")
        if given is not None and not self._knows(request):
            raise _refusal(401, "", "Invalid credentials in Authorization header")
        repo = self.repos.get(name)
        if repo is None or not self._sees(request, repo):
            # To strangers the hub does not tell what is private from what is not there.
            raise _refusal(404 if self._knows(request) else 401, "RepoNotFound", "Repository not found")
        return name, repo

    def _check_revision(self, request: web.Request, repo: Repo) -> None:
        revision = request.match_info.get("revision", "main")
        # A commit stays reachable, whatever main is now, unless the history is rewritten; then it is simply gone.
        if revision != "main" and not re.fullmatch(r"[0-9a-f]{40}", revision):
            raise _refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")

    def _fault(self, faults: deque[Fault]) -> web.Response | None:
        if not faults:
            return None
        fault = faults.popleft()
        return None if fault.status is None else web.Response(status=fault.status, headers=fault.headers)


def _lfs(content: Content) -> dict[str, Any]:
    return {"sha256": content.sha256, "size": content.size, "pointerSize": 135}


def _refusal(status: int, code: str, message: str) -> web.HTTPException:
    kinds: Sequence[type[web.HTTPException]] = (web.HTTPUnauthorized, web.HTTPForbidden, web.HTTPNotFound)
    kind: Callable[..., web.HTTPException] = next(kind for kind in kinds if kind.status_code == status)
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return kind(headers=headers, text=message)
