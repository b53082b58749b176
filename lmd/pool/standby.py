"""One worker that has said hello and waits for a model, so that a cold load pays for the model alone."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from lmd.errors import LmdError
from lmd.loading import WorkerFacts
from lmd.pool.clock import Clock, Timer
from lmd.worker.process import Worker

log = logging.getLogger("lmd.pool")

Spawn = Callable[[], Awaitable[Worker]]

_LONGEST_DELAY = 60.0


class Standby:
    """Owner of the waiting worker. ``enabled`` is asked anew each time, so that a reload of the settings counts."""

    def __init__(
        self, spawn: Spawn, enabled: Callable[[], bool], clock: Clock, on_facts: Callable[[WorkerFacts], None]
    ):
        self._spawn = spawn
        self._enabled = enabled
        self._clock = clock
        self._on_facts = on_facts
        self._spawning: asyncio.Task[Worker] | None = None
        self._failures = 0
        self._retry: Timer | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._stopped = False

    async def start(self) -> None:
        """Spawn the first one, also where no standby is wanted: somebody must say what devices there are."""
        task = self._spawning = self._begin()
        await asyncio.wait((task,))
        if not self._enabled() and self._spawning is task:
            self._spawning = None
            self._end(task)

    async def take(self) -> Worker:
        """The waiting worker, or a new one. Raises LoadFailed when none can be started."""
        task, self._spawning = self._spawning, None
        if task is None or (task.done() and (task.cancelled() or task.exception() or task.result().gone.done())):
            task = self._begin()
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._spawning is None and not self._stopped and self._enabled():
                self._spawning = task
            else:
                self._end(task)
            raise

    def refill(self) -> None:
        """Have a worker waiting again."""
        if self._spawning is None and self._retry is None and not self._stopped and self._enabled():
            self._spawning = self._begin()

    async def stop(self) -> None:
        self._stopped = True
        if self._retry is not None:
            self._retry.cancel()
        if self._spawning is not None:
            self._end(self._spawning)
            self._spawning = None
        while self._ending:
            await asyncio.wait(self._ending)

    @property
    def worker(self) -> Worker | None:
        """The one that waits, if it is there and alive."""
        task = self._spawning
        if task is None or not task.done() or task.cancelled() or task.exception():
            return None
        return task.result()

    def _begin(self) -> asyncio.Task[Worker]:
        task = asyncio.ensure_future(self._spawn())
        task.add_done_callback(self._spawned)
        return task

    def _spawned(self, task: asyncio.Task[Worker]) -> None:
        if task.cancelled():
            return
        if error := task.exception():
            log.warning("a worker could not be started: %s", error)
            self._lost(task)
            return
        worker = task.result()
        self._failures = 0
        self._on_facts(worker.facts)
        worker.gone.add_done_callback(lambda gone: self._died(task, gone.result()))

    def _died(self, task: asyncio.Task[Worker], reason: LmdError) -> None:
        if self._spawning is task:
            log.warning("the standby worker is gone: %s", reason)
            self._lost(task)

    def _lost(self, task: asyncio.Task[Worker]) -> None:
        """The one that should wait is not there: try again, ever more slowly."""
        if self._spawning is not task:
            return
        self._spawning = None
        self._failures += 1

        def retry() -> None:
            self._retry = None
            self.refill()

        if not self._stopped:
            self._retry = self._clock.call_later(min(_LONGEST_DELAY, 2.0 ** (self._failures - 1)), retry)

    def _end(self, task: asyncio.Task[Worker]) -> None:
        async def end() -> None:
            task.cancel()
            await asyncio.wait((task,))
            if not task.cancelled() and not task.exception():
                await task.result().stop(0)

        ending = asyncio.ensure_future(end())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)
