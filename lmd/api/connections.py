"""Connections: no client stalls its answer for ever, and what is no HTTP gets an error like any other.

Slow senders are cut by aiohttp's own keep-alive timeout, which counts until a request's head is whole, and by
`lmd.api.middleware.json_body`.
"""

import asyncio
import logging
from collections.abc import Callable
from math import isinf
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.web_protocol import RequestPayloadError

from lmd.api.middleware import ErrorShape
from lmd.api.status import HttpError, internal_error

logger = logging.getLogger(__name__)


class Connection(web.RequestHandler):
    """One connection. A client that takes nothing for ``patience()`` seconds is cut off; 0: never."""

    __slots__ = ("_patience", "_shape", "_stalled", "_unread")

    def __init__(self, patience: Callable[[], float], shape: ErrorShape, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience = patience
        self._shape = shape
        self._stalled: asyncio.TimerHandle | None = None
        self._unread = 0

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def _watch(self) -> None:
        seconds = self._patience()
        if self.transport is not None and seconds and not isinf(seconds):
            self._unread = self.transport.get_write_buffer_size()
            self._stalled = asyncio.get_running_loop().call_later(seconds, self._cut)

    def resume_writing(self) -> None:
        self._forget()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _forget(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _cut(self) -> None:
        self._stalled = None
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() < self._unread:
            self._watch()  # it takes a large piece slowly, but takes it
        else:
            logger.info("%s takes nothing of its answer, and is cut off", self.transport.get_extra_info("peername"))
            self.transport.abort()

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        # The request was answered with what is wrong with its body; the rest of that cannot be read either.
        if not isinstance(kwargs.get("exc_info"), RequestPayloadError):
            super().log_exception(*args, **kwargs)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What no middleware sees: mostly bytes that are no HTTP. Their content is not logged: it may be a secret."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if status >= 500:
            logger.error("a request failed before it was served", exc_info=exc)
            error = internal_error()
        elif isinstance(exc, LineTooLong):
            status = 431
            error = HttpError(
                431, "header_too_large", "The request line or a header is too long.", hint="[limits] header_size."
            )
        else:
            logger.debug("%s sent no HTTP request: %s", request.remote, type(exc).__name__)
            error = HttpError(status, "bad_request", "This is no HTTP request that can be read.")
        response = web.Response(body=self._shape(error, status), status=status, content_type="application/json")
        response.force_close()
        return response


class _Server(web.Server):
    def __init__(self, patience: Callable[[], float], shape: ErrorShape, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience = patience
        self._shape = shape

    def __call__(self) -> web.RequestHandler:
        return Connection(self._patience, self._shape, self, loop=self._loop, **self._kwargs)


class Runner(web.AppRunner):
    """An AppRunner whose connections are `Connection`.

    ``patience``: seconds that a client may stall; 0: any. ``shape``: of what is said to those who speak no HTTP.
    """

    __slots__ = ("_patience", "_shape")

    def __init__(
        self, app: web.Application, shape: ErrorShape, patience: Callable[[], float] = lambda: 0.0, **kwargs: Any
    ) -> None:
        super().__init__(app, **kwargs)
        self._patience = patience
        self._shape = shape

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(
            self._patience,
            self._shape,
            plain.request_handler,
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            **plain._kwargs,
        )
