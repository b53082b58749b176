"""Workers whose instances made room for others: they keep the vocabulary, which is half of a small model's load."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf

from lmd.errors import Unloaded
from lmd.pool.wanted import InstanceKey
from lmd.worker.process import Worker


@dataclass(frozen=True, slots=True)
class _Place:
    worker: Worker
    expires_at: float
    died: Callable[[object], None]


class Parked:
    """Owner of the workers that wait for the load that they had. ``limit`` is asked anew each time.

    They are nobody's instance: what they hold (the process and the vocabulary) is given up for any load that needs it.
    ``on_gone`` is called when one that was given up has ended.
    """

    def __init__(self, limit: Callable[[], int], on_gone: Callable[[], None]) -> None:
        self._limit = limit
        self._on_gone = on_gone
        self._places: dict[InstanceKey, _Place] = {}
        """The one that came last is the last."""
        self._ending: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def wanted(self) -> bool:
        return self._limit() > 0

    @property
    def expires_at(self) -> float:
        """When the next one is to go; inf: never."""
        return min((place.expires_at for place in self._places.values()), default=inf)

    def add(self, key: InstanceKey, worker: Worker, expires_at: float) -> None:
        """Keep it till then at most. `trim` when nothing is about to take one."""
        self._end(key)
        died = partial(self._died, key, worker)
        self._places[key] = _Place(worker, expires_at, died)
        worker.gone.add_done_callback(died)

    def take(self, key: InstanceKey) -> Worker | None:
        """The worker that had this load; it may have died this very moment."""
        place = self._places.pop(key, None)
        if place is None:
            return None
        place.worker.gone.remove_done_callback(place.died)
        return place.worker

    def trim(self, now: float, busy: bool) -> None:
        """End what is over the limit, what has expired, and without any instance (not ``busy``) all: then nobody
        swaps models."""
        over = len(self._places) - (self._limit() if busy else 0)
        for n, (key, place) in enumerate(list(self._places.items())):
            if n < over or place.expires_at <= now:
                self._end(key)

    def clear(self, but: InstanceKey | None = None) -> bool:
        """End all, or all ``but`` one. True where there was any."""
        ended = [key for key in self._places if key != but]
        for key in ended:
            self._end(key)
        return bool(ended)

    async def stop(self) -> None:
        """End all; returns when they are reaped."""
        self.clear()
        while self._ending:
            await asyncio.wait(self._ending)

    def _end(self, key: InstanceKey) -> None:
        worker = self.take(key)
        if worker is None:
            return
        worker.kill(Unloaded("Nobody needs its vocabulary any more."))
        ending = asyncio.ensure_future(worker.stop(0.0))
        self._ending.add(ending)
        ending.add_done_callback(self._ended)

    def _ended(self, ending: asyncio.Task[None]) -> None:
        self._ending.discard(ending)
        self._on_gone()

    def _died(self, key: InstanceKey, worker: Worker, _gone: object) -> None:
        if key in self._places and self._places[key].worker is worker:
            del self._places[key]
