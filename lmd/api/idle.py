"""Since when nobody has asked anything: what the daemon leaves by, where it may leave when it is idle."""

import asyncio
import time
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware


class Idleness:
    """Counts HTTP exchanges of every kind, streams of events too, from their headers to the end of their answers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open = 0
        self._since = clock()
        self._quiet = asyncio.Event()
        self._quiet.set()

    def seconds(self) -> float:
        """How long no exchange has been open; 0 while one is."""
        return 0.0 if self._open else self._clock() - self._since

    async def quiet(self) -> None:
        """Wait until no exchange is open."""
        await self._quiet.wait()

    def middleware(self) -> Middleware:
        """To be the outermost of an application. Several applications may share one count."""

        @web.middleware
        async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
            self._open += 1
            self._quiet.clear()
            try:
                return await handler(request)
            finally:
                self._open -= 1
                self._since = self._clock()
                if not self._open:
                    self._quiet.set()

        return middleware
