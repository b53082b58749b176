"""Who watches what goes to the models and what comes back (``lmctl log``): kept in memory, told, forgotten.

Where nobody watches nothing is done: a stream asks once, whether there is anyone.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from itertools import count
from typing import TYPE_CHECKING

from lmd import log
from lmd.errors import LmdError, Overloaded
from lmd.protocol import Answered, AnswerEnded, LogLine, Prompted
from lmd.worker.messages import Finished, Generate, Output, Prefilled, PromptText

if TYPE_CHECKING:
    from lmd.pool.lease import Lease
    from lmd.worker.mailbox import Mailbox

    Items = Mailbox | AsyncGenerator[Output | Prefilled | Finished, None]
    """What a worker says of one sequence, as it comes."""

Seen = Prompted | Answered | AnswerEnded | LogLine

MOST_WAITING = 8 * 2**20
"""Characters that may wait for one watcher to take them."""
EVENT_COST = 256
"""What an event counts beside its text."""


class Watcher(AsyncIterator[Seen]):
    """What one reader has not read yet. Raises Overloaded, in place of all that, once it is too much."""

    def __init__(self, watchers: set[Watcher]) -> None:
        self._watchers = watchers
        self._waiting: deque[Seen] = deque()
        self._size = 0
        self._wake = asyncio.Event()
        self._ended = False
        self._dropped = False
        watchers.add(self)

    def put(self, event: Seen) -> None:
        if self._ended:
            return
        self._size += _size(event)
        if self._size > MOST_WAITING:
            self._dropped = True
            self._waiting.clear()
            self.end()
            return
        self._waiting.append(event)
        self._wake.set()

    def end(self) -> None:
        """Nothing more comes; what waits can still be read. Idempotent."""
        self._ended = True
        self._watchers.discard(self)
        self._wake.set()

    async def __anext__(self) -> Seen:
        while not self._waiting:
            if self._dropped:
                raise Overloaded(
                    "This log is read too slowly: lmd keeps no more than 8 MiB of it.",
                    hint="Start it again, and read it as it comes: lmctl log > FILE",
                )
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        event = self._waiting.popleft()
        self._size -= _size(event)
        return event


def _size(event: Seen) -> int:
    if isinstance(event, Prompted | Answered):
        return len(event.text) + EVENT_COST
    return (len(event.message) if isinstance(event, LogLine) else 0) + EVENT_COST


class Watchers:
    """Everyone who watches the models. False where nobody does."""

    def __init__(self) -> None:
        self._models: set[Watcher] = set()
        self._server: set[Watcher] = set()
        self._numbers = count(1)

    def __bool__(self) -> bool:
        return bool(self._models)

    @contextmanager
    def watch_models(self) -> Iterator[Watcher]:
        """What the models are told and answer, of every sequence that begins from here on."""
        watcher = Watcher(self._models)
        try:
            yield watcher
        finally:
            watcher.end()

    @contextmanager
    def watch_server(self) -> Iterator[Watcher]:
        """The daemon's log, at the level that the settings say."""
        watcher = Watcher(self._server)
        loop = asyncio.get_running_loop()

        def tell(record: logging.LogRecord) -> None:
            line = log_line(record)
            try:
                loop.call_soon_threadsafe(watcher.put, line)  # a record may come from any thread
            except RuntimeError:  # the loop is closed: lmd has stopped
                watcher.end()

        with log.tapped(tell):
            try:
                yield watcher
            finally:
                watcher.end()

    def end(self) -> None:
        """lmd stops: nobody is told anything more."""
        for watcher in [*self._models, *self._server]:
            watcher.end()

    def tell(self, event: Seen) -> None:
        for watcher in list(self._models):
            watcher.put(event)

    async def over(
        self, lease: Lease, order: Generate, *, model: str, request: str, choice: int
    ) -> AsyncGenerator[Output | Prefilled | Finished, None]:
        """The sequence's items as they come, told on the way: its prompt, what the model writes, and how it ends."""
        prompt = [
            piece.text if isinstance(piece, PromptText) else await lease.detokenize(piece.tokens)
            for piece in order.prompt
        ]
        number = next(self._numbers)
        self.tell(Prompted(number, time.time(), "".join(prompt), model, lease.instance_id, request, choice))
        # Unless it ends by itself, its client has given it up.
        ended = AnswerEnded(number, 0.0, "cancelled")
        try:
            async with aclosing(lease.generate(order)) as items:
                async for item in items:
                    if not isinstance(item, Prefilled) and item.text:
                        self.tell(Answered(number, item.text))
                    if isinstance(item, Finished):
                        ended = _ended(number, item)
                    yield item
        except LmdError as error:
            ended = AnswerEnded(number, 0.0, "error", error=error.message)
            raise
        finally:
            ended.at = time.time()
            self.tell(ended)


def _ended(number: int, last: Finished) -> AnswerEnded:
    usage = last.usage
    return AnswerEnded(
        number,
        0.0,
        str(last.reason),
        stop=last.stop,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        completion_tokens=usage.completion_tokens,
        queue_seconds=usage.queue_seconds,
        prompt_seconds=usage.prompt_seconds,
        generation_seconds=usage.generation_seconds,
        tokens_per_second=usage.tokens_per_second,
    )


def log_line(record: logging.LogRecord) -> LogLine:
    return LogLine(
        record.created,
        record.levelname.lower(),
        record.name.removeprefix("lmd."),
        log.message_of(record),
        {name.lower(): str(value) for name, value in log.fields_of(record).items()},
    )
