"""Server-sent events to one client: sent late enough that an early error is still a plain HTTP error."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from aiohttp import hdrs, web

from lmd.api.activity import current_record
from lmd.api.services import services_of
from lmd.api.status import error_code, http_status, internal_error
from lmd.errors import LmdError
from lmd.generation import GenerationEvent, LoadProgress, PromptProgress

if TYPE_CHECKING:
    from lmd.api.generate import Events

logger = logging.getLogger(__name__)

_COMMENT = b": %s\n\n"


class EventStream:
    """An ``async with`` around one streamed answer.

    Nothing goes out before the first `send`, or before ``keep_alive`` seconds have passed in silence: then the
    headers (200) and a comment line go, and another comment after each further silence. Once something went out,
    ``started`` is true and an error has to be told as an event. `send` waits while the client reads slowly.
    A client that is gone cancels the task that serves it (aiohttp's ``handler_cancellation``).
    """

    def __init__(self, request: web.Request, keep_alive: float) -> None:
        self._request = request
        self._keep_alive = keep_alive
        self._starting = asyncio.Lock()
        self._last = time.monotonic()
        self._note = "waiting"
        self._ticker: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None
        """Set once the headers are out, where what follows may be written to it."""
        self.response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )

    @property
    def started(self) -> bool:
        return self.response.prepared

    async def __aenter__(self) -> EventStream:
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None
    ) -> None:
        if (ticker := self._ticker) is not None:
            self._ticker = None  # its end's traceback holds this stream, and so the request
            ticker.cancel()
            await asyncio.gather(ticker, return_exceptions=True)
        if raised is None and self.started:
            await self.end()

    def note(self, text: str) -> None:
        """What the next comment line says (one line)."""
        self._note = text

    async def send(self, data: bytes) -> None:
        """Write whole events. Concurrent sends do not mix."""
        if not self.response.prepared:
            await self._start()
        self._last = time.monotonic()
        await self.response.write(data)
        if self._transport is None and self.response.headers.get(hdrs.TRANSFER_ENCODING) == "chunked":
            self._transport = self._request.transport

    async def end(self, data: bytes = b"") -> None:
        """The last events, and the end of the stream with them: clients that know the last one leave at once."""
        if not self.response.prepared:
            await self._start()
        if self._ticker is not None:
            self._ticker.cancel()
        await self.response.write_eof(data)
        record = current_record()
        if record is not None:
            record.answered = self.response.status

    def outlet(self, encode: Callable[[GenerationEvent], bytes]) -> Outlet:
        """A way past `send` for events that ``encode`` makes bytes of, while the stream runs and its client reads."""
        return Outlet(self, encode)

    def send_now(self, data: bytes) -> None:
        """As `send`, for when `takes` says so."""
        assert self._transport is not None
        self._last = time.monotonic()
        # The chunks of RFC 9112, as aiohttp writes them, without the layers in which it looks for what is not here:
        # compression, a length, headers that wait.
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def takes(self) -> bool:
        """Whether the stream has begun, and the client has taken (or its kernel, for it) all that was written."""
        transport = self._transport
        return transport is not None and not transport.get_write_buffer_size() and not transport.is_closing()

    async def _start(self) -> None:
        async with self._starting:
            if not self.response.prepared:
                await self.response.prepare(self._request)

    async def _tick(self) -> None:
        try:
            while True:
                silent = time.monotonic() - self._last
                if silent < self._keep_alive:
                    await asyncio.sleep(self._keep_alive - silent)
                    continue
                await self.send(_COMMENT % self._note.encode())
        except ConnectionError:
            return  # aiohttp cancels the serving task


class Outlet:
    """`lmd.api.generate.Outlet` into an event stream."""

    def __init__(self, stream: EventStream, encode: Callable[[GenerationEvent], bytes]) -> None:
        self._stream = stream
        self._encode = encode
        self.ready = stream.takes

    def write(self, events: Sequence[GenerationEvent]) -> None:
        encode = self._encode
        data = encode(events[0]) if len(events) == 1 else b"".join(map(encode, events))
        if data:
            self._stream.send_now(data)


class Told(Protocol):
    """An answer in a dialect's events."""

    def feed(self, event: GenerationEvent) -> bytes:
        """The event as it goes out; b"" where nothing does."""

    def closing(self) -> bytes:
        """What comes after the last event."""

    def failed(self, error: LmdError, status: int) -> bytes:
        """What comes instead, after an error."""


async def stream_answer(
    request: web.Request,
    told: Told,
    events: Callable[[Outlet], Events],
    finish: Callable[[], Awaitable[None]] | None = None,
) -> web.StreamResponse:
    """Send what ``told`` makes of the events. ``finish``: what has to be done before the end is told.

    An error before anything went out is raised, so that it becomes a plain HTTP error.
    """
    async with (
        EventStream(request, services_of(request).keep_alive_seconds) as stream,
        aclosing(events(stream.outlet(told.feed))) as source,
    ):
        try:
            async for event in source:
                if isinstance(event, LoadProgress):
                    stream.note(f"loading {event.instance}: {event.fraction:.0%}")
                elif isinstance(event, PromptProgress):
                    stream.note(f"prompt: {event.done} of {event.total} tokens")
                if data := told.feed(event):
                    await stream.send(data)
            if finish is not None:
                await finish()
            last = told.closing()
        except Exception as raised:
            if not stream.started or isinstance(raised, ConnectionError):
                raise
            last = told.failed(*_late_error(raised))
        await stream.end(last)
    return stream.response


def _late_error(raised: Exception) -> tuple[LmdError, int]:
    """An error to be told inside a stream whose status is already out: logged, with the status it would have had."""
    if isinstance(raised, LmdError):
        error = raised
        logger.warning("stream ended with an error: %s", error)
    else:
        logger.error("stream failed", exc_info=raised)
        error = internal_error()
    record = current_record()
    if record is not None:
        record.error = error_code(error)
    return error, http_status(error)
