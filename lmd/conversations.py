"""Stored answers that later requests continue: one SQLite file in the state directory.

Every stored response knows its parent, so one conversation is a tree: any response may be continued, several times.
What leaves, by age or size, leaves as a whole conversation, the longest unused first.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import msgspec

from lmd.errors import DiskFull, LmdError, NotFound
from lmd.generation import ImagePart, Message, Part, Role, TextPart, ToolCall

log = logging.getLogger(__name__)

_VERSION = 1
_SCHEMA = """
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    parent TEXT REFERENCES responses (id) ON DELETE CASCADE,
    root TEXT NOT NULL,
    created_at REAL NOT NULL,
    model TEXT NOT NULL,
    system_prompt TEXT,
    title TEXT NOT NULL,
    messages BLOB NOT NULL,
    size INTEGER NOT NULL
);
CREATE INDEX by_parent ON responses (parent);
CREATE INDEX by_root ON responses (root, created_at);
"""
_TITLE = 80
_PRUNE_SECONDS = 3600.0

_Result = TypeVar("_Result")


class Limits(Protocol):
    """``[conversations]``. Asked anew each time."""

    @property
    def max_age(self) -> float:
        """Seconds since a conversation was last added to; inf: for ever, 0: nothing is stored."""

    @property
    def max_size(self) -> int:
        """Bytes of all conversations' messages; 0: nothing is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """One answer with what was newly asked for it. ``messages``: the request's own, then the answer."""

    id: str
    parent: str | None
    model: str
    system_prompt: str | None
    """In force for this answer; a continuation inherits it."""
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class History:
    """All that was said up to one response."""

    system_prompt: str | None
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A tree of responses. ``id`` is its first response's; times are Unix seconds."""

    id: str
    title: str
    """The beginning of its first message."""
    model: str
    responses: int
    size: int
    created_at: float
    used_at: float


class Conversations:
    """Owner of the file. All methods may be called at any time; the file is touched by one thread, and not before
    something is stored or asked for.

    A file that cannot be used raises LmdError with what to do about it.
    """

    def __init__(self, file: Path, limits: Callable[[], Limits], now: Callable[[], float] = time.time) -> None:
        self._file = file
        self._limits = limits
        self._now = now
        self._thread = ThreadPoolExecutor(1, "conversations")
        self._opened: sqlite3.Connection | None = None
        self._closed = False

    async def add(self, response: Response) -> bool:
        """Store it. False: nothing is to be stored, or its parent has left meanwhile."""
        limits = self._limits()
        if not limits.max_age or not limits.max_size:
            return False
        return await self._run(lambda db: self._add(db, response))

    async def history(self, id: str) -> History:
        """What was said up to and with response ``id``. NotFound."""
        return await self._run(lambda db: _history(db, id))

    async def rows(self) -> list[Conversation]:
        """The last used first."""
        return await self._run(_rows)

    async def remove(self, ids: Iterable[str]) -> list[str]:
        """Remove whole conversations, by the id of any of their responses; returns their own ids. NotFound: none was
        removed."""
        wanted = list(ids)
        return await self._run(lambda db: _remove(db, wanted))

    async def remove_all(self) -> list[str]:
        return await self._run(lambda db: _remove(db, [row.id for row in _rows(db)]))

    async def keep_limits(self) -> None:
        """Remove what the limits no longer allow, every hour until cancelled."""
        while True:
            if self._file.exists():
                try:
                    await self._run(lambda _: None)
                except LmdError as error:
                    log.error("%s", error)
            await asyncio.sleep(_PRUNE_SECONDS)

    async def close(self) -> None:
        """The last call. Idempotent."""
        if self._closed:
            return
        self._closed = True

        def close() -> None:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

        await asyncio.get_running_loop().run_in_executor(self._thread, close)
        self._thread.shutdown(wait=False)

    # ── in the thread ──

    async def _run(self, work: Callable[[sqlite3.Connection], _Result]) -> _Result:
        limits, now = self._limits(), self._now()

        def in_thread() -> _Result:
            with self._transaction() as db:
                _prune(db, limits, now, keep=None)
                return work(db)

        return await asyncio.get_running_loop().run_in_executor(self._thread, in_thread)

    def _add(self, db: sqlite3.Connection, response: Response) -> bool:
        root = response.id
        if response.parent is not None:
            found = db.execute("SELECT root FROM responses WHERE id = ?", (response.parent,)).fetchone()
            if found is None:
                log.warning("%s is not stored: %s, which it continues, has left", response.id, response.parent)
                return False
            (root,) = found
        messages = _encode(response.messages)
        size = len(messages) + len((response.system_prompt or "").encode())
        title = next((one.text for one in response.messages if one.role is Role.USER), "")
        title = " ".join(title[: 4 * _TITLE].split())[:_TITLE]
        db.execute(
            "INSERT INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                response.id,
                response.parent,
                root,
                self._now(),
                response.model,
                response.system_prompt,
                title,
                messages,
                size,
            ),
        )
        _prune(db, self._limits(), self._now(), keep=response.id)
        return True

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            if self._opened is None:
                self._opened = _open(self._file)
            with self._opened as db:
                db.execute("BEGIN IMMEDIATE")
                yield db
        except (sqlite3.Error, OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            if _is_full(error):
                raise DiskFull(
                    f"There is no room to store conversations in {self._file}.",
                    hint='Send "store": false, or make room.',
                ) from error
            raise LmdError(
                f"The stored conversations ({self._file}) cannot be used: {error}.",
                hint='Send "store": false, or see to the file: moved away, it is made anew.',
            ) from error


def _is_full(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, sqlite3.Error) and getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL


def _open(file: Path) -> sqlite3.Connection:
    file.parent.mkdir(parents=True, exist_ok=True)
    # What people say to a model is nobody else's; SQLite gives its further files the same mode.
    os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(file, isolation_level=None, check_same_thread=False, timeout=10)
    try:
        db.execute("PRAGMA auto_vacuum = FULL")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute("PRAGMA secure_delete = ON")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version == 0:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise sqlite3.DatabaseError(f"it was written by another version of lmd (format {version})")
    except BaseException:
        db.close()
        raise
    return db


def _history(db: sqlite3.Connection, id: str) -> History:
    found = db.execute("SELECT system_prompt FROM responses WHERE id = ?", (id,)).fetchone()
    if found is None:
        raise _unknown(id)
    chain = db.execute(
        """
        WITH RECURSIVE up (id, depth) AS (
            SELECT ?, 0
            UNION ALL
            SELECT responses.parent, depth + 1 FROM responses JOIN up ON responses.id = up.id
            WHERE responses.parent IS NOT NULL
        )
        SELECT messages FROM up JOIN responses ON responses.id = up.id ORDER BY depth DESC
        """,
        (id,),
    )
    return History(found[0], tuple(message for (blob,) in chain for message in _decode(blob)))


def _rows(db: sqlite3.Connection) -> list[Conversation]:
    rows = db.execute(
        """
        SELECT first.id, first.title, last.model, all_.n, all_.size, first.created_at, all_.used_at
        FROM (SELECT root, count(*) AS n, sum(size) AS size, max(created_at) AS used_at, max(rowid) AS newest
              FROM responses GROUP BY root) AS all_
        JOIN responses AS first ON first.id = all_.root
        JOIN responses AS last ON last.rowid = all_.newest
        ORDER BY all_.used_at DESC, all_.newest DESC
        """
    )
    return [
        Conversation(id=id, title=title, model=model, responses=n, size=size, created_at=created, used_at=used)
        for id, title, model, n, size, created, used in rows
    ]


def _remove(db: sqlite3.Connection, ids: Iterable[str]) -> list[str]:
    roots: dict[str, None] = {}
    for id in ids:
        found = db.execute("SELECT root FROM responses WHERE id = ?", (id,)).fetchone()
        if found is None:
            raise _unknown(id)
        roots[found[0]] = None
    db.executemany("DELETE FROM responses WHERE root = ?", [(root,) for root in roots])
    return list(roots)


def _prune(db: sqlite3.Connection, limits: Limits, now: float, keep: str | None) -> None:
    """Remove what is too old, then what is too much. ``keep``: the response that has just come stays, with all that it
    continues; of its conversation only other branches may go."""
    db.execute(
        "DELETE FROM responses WHERE root IN (SELECT root FROM responses GROUP BY root HAVING max(created_at) < ?)",
        (now - limits.max_age,),
    )
    (total,) = db.execute("SELECT coalesce(sum(size), 0) FROM responses").fetchone()
    if total <= limits.max_size:
        return
    kept = db.execute("SELECT root FROM responses WHERE id = ?", (keep,)).fetchone() if keep else None
    trees = db.execute("SELECT root, sum(size) FROM responses GROUP BY root ORDER BY max(created_at), max(rowid)")
    for root, size in trees.fetchall():
        if total <= limits.max_size:
            return
        if kept is None or root != kept[0]:
            db.execute("DELETE FROM responses WHERE root = ?", (root,))
            total -= size
    while total > limits.max_size:
        leaf = db.execute(
            "SELECT id, size FROM responses WHERE id != ? AND id NOT IN "
            "(SELECT parent FROM responses WHERE parent IS NOT NULL) ORDER BY created_at, rowid LIMIT 1",
            (keep,),
        ).fetchone()
        if leaf is None:
            return
        db.execute("DELETE FROM responses WHERE id = ?", leaf[:1])
        total -= leaf[1]


def _unknown(id: str) -> NotFound:
    return NotFound(
        f"There is no stored response '{id[:100]}'.",
        hint="It was not stored, or has left by age or size ([conversations]): send the whole conversation.",
    )


# ── messages as bytes ─────────────────────────────────────────────────────────────────────────


class _Text(msgspec.Struct, tag="text"):
    text: str


class _Image(msgspec.Struct, tag="image"):
    data: bytes
    media_type: str


class _Call(msgspec.Struct):
    id: str
    name: str
    arguments: str


class _Message(msgspec.Struct, omit_defaults=True):
    role: str
    parts: list[_Text | _Image] = []
    name: str | None = None
    reasoning: str | None = None
    calls: list[_Call] = []
    call_id: str | None = None


_decoder = msgspec.msgpack.Decoder(list[_Message])


def _encode(messages: Iterable[Message]) -> bytes:
    return msgspec.msgpack.encode(
        [
            _Message(
                one.role.value,
                [_Text(p.text) if isinstance(p, TextPart) else _Image(p.data, p.media_type) for p in one.parts],
                one.name,
                one.reasoning,
                [_Call(call.id, call.name, call.arguments) for call in one.tool_calls],
                one.tool_call_id,
            )
            for one in messages
        ]
    )


def _decode(blob: bytes) -> list[Message]:
    return [
        Message(
            role=Role(one.role),
            parts=tuple(_part(part) for part in one.parts),
            name=one.name,
            reasoning=one.reasoning,
            tool_calls=tuple(ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in one.calls),
            tool_call_id=one.call_id,
        )
        for one in _decoder.decode(blob)
    ]


def _part(part: _Text | _Image) -> Part:
    return TextPart(part.text) if isinstance(part, _Text) else ImagePart(part.data, part.media_type)
