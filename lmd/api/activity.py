"""What is being served right now: open generation requests, and what one request turned out to be."""

import asyncio
import contextvars
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from lmd.errors import Draining
from lmd.generation import Usage


@dataclass(slots=True)
class RequestRecord:
    """What is told of one HTTP request when it ends: filled in on its way, read by the access line."""

    id: str
    method: str
    path: str
    client: str
    token: str | None = None
    """Name of the token that it came with."""
    started: float = field(default_factory=time.monotonic)
    model: str | None = None
    preset: str | None = None
    instance: str | None = None
    first_token: float | None = None
    """Monotonic time of the first piece of the answer."""
    usage: Usage | None = None
    waited: float = 0.0
    """Seconds that it waited for its model."""
    error: str | None = None
    """Code of the error that the client was told, in whichever way."""
    answered: int | None = None
    """Status of a stream that was written to its end: the client may leave before the rest of us knows."""


_record: contextvars.ContextVar[RequestRecord | None] = contextvars.ContextVar("request_record", default=None)


def current_record() -> RequestRecord | None:
    """The record of the HTTP request that the running task serves."""
    return _record.get()


@contextmanager
def recording(record: RequestRecord) -> Iterator[RequestRecord]:
    token = _record.set(record)
    try:
        yield record
    finally:
        _record.reset(token)


class Activity:
    """Counts requests that compute something, and lets the daemon wait for their end."""

    def __init__(self) -> None:
        self._active = 0
        self._served = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def active(self) -> int:
        return self._active

    @property
    def served(self) -> int:
        """Requests that have ended, well or badly."""
        return self._served

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Begin no new request from here on; those that run go on."""
        self._draining = True

    async def idle(self) -> None:
        """Wait until no request is open."""
        await self._idle.wait()

    def refuse_if_draining(self) -> None:
        if self._draining:
            raise Draining(
                "lmd is stopping and takes no new requests.",
                hint="Try again once it has been started anew.",
                retry_after=5,
            )

    @contextmanager
    def request(self) -> Iterator[None]:
        """Counts one request from here to the end of its answer. Draining: refused."""
        self.refuse_if_draining()
        self._active += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._active -= 1
            self._served += 1
            if not self._active:
                self._idle.set()
