"""Instances from their making to their end: every change of `Instance.state` is made here.

Decides nothing about who stays (`lmd.pool.pump` does): it loads what it is told to, notices deaths, and ends what has
to go. The slow parts (loading, ending a process) are tasks that come back with one change of state, after which
``pump`` is called. Event loop only.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from math import inf
from typing import Any, Protocol

from lmd.errors import LmdError, LoadFailed, Unloaded, again
from lmd.loading import LoadedModel, WorkerFacts
from lmd.log import fields
from lmd.pool.changes import Changes
from lmd.pool.clock import Clock
from lmd.pool.cores import share_cores
from lmd.pool.crashes import Crashes
from lmd.pool.instance import Instance, State
from lmd.pool.memory import Budget, Holding, Memory, Need, Probe, budget, device_memory, estimate, measured, total
from lmd.pool.parked import Parked
from lmd.pool.refusals import size
from lmd.pool.standby import Spawn, Standby
from lmd.pool.table import Table
from lmd.pool.tally import Tally
from lmd.pool.wanted import Wanted
from lmd.protocol import InstanceChanged
from lmd.worker.messages import Load
from lmd.worker.process import Worker

log = logging.getLogger("lmd.pool")

STOP_GRACE = 5.0
"""Seconds that a worker gets to end by itself when its instance is unloaded."""


class ModelSettings(Protocol):
    """The part of ``[models]`` that the pool obeys. Durations in seconds, ``inf``: never."""

    @property
    def max_loaded(self) -> int: ...

    @property
    def memory_limit(self) -> Any:
        """Bytes, or "auto"."""

    @property
    def eviction(self) -> str: ...

    @property
    def prompt_cache(self) -> int:
        """Bytes of RAM for each instance's evicted prefixes."""

    @property
    def standby(self) -> bool: ...

    @property
    def parked(self) -> int: ...

    @property
    def load_timeout(self) -> float: ...

    @property
    def queue_timeout(self) -> float: ...


class Lifecycle:
    """Owner of all instances. ``settings`` is asked anew at each load; ``spawn`` gives a worker that has said hello."""

    def __init__(
        self, settings: Callable[[], ModelSettings], spawn: Spawn, memory: Probe, clock: Clock, pump: Callable[[], None]
    ) -> None:
        self.instances = Table()
        self.crashes = Crashes()
        self.changes = Changes()
        self.tally = Tally()
        self.standby = Standby(spawn, lambda: settings().standby, clock, self._learn)
        self.parked = Parked(lambda: settings().parked, pump)
        self.facts: WorkerFacts | None = None
        """What the newest worker said in its Hello; None before the first."""
        self._settings = settings
        self._probe = memory
        self._clock = clock
        self._pump = pump
        self._serials = count(1)
        self._vram = 0

    # ── memory ────────────────────────────────────────────────────────────────────────────────

    def need(self, wanted: Wanted) -> Need:
        draft = wanted.draft.header if wanted.draft is not None else None
        return estimate(wanted.model.header, wanted.load, draft, self._vram)

    def budget(self) -> Budget:
        holdings = [Holding(i.memory, i.worker.pid if i.worker else 0) for i in self.instances.residents()]
        pids = [holding.pid for holding in holdings if holding.pid]
        return budget(self._probe(pids), holdings, self._settings().memory_limit, self._vram)

    def _learn(self, facts: WorkerFacts) -> None:
        self.facts = facts
        self._vram = device_memory(facts, total(instance.memory for instance in self.instances.residents()))

    # ── making ────────────────────────────────────────────────────────────────────────────────

    def create(self, wanted: Wanted) -> Instance:
        serial = next(self._serials)
        now = self._clock.now()
        leaving = self.instances.draining(wanted.id)
        if leaving is not None:
            self.rename(leaving, self.instances.free_id(f"{wanted.id}:old"))
        instance = Instance(serial, self.instances.free_id(wanted.id), wanted, self.need(wanted), created_at=now)
        instance.used_at = now
        instance.ttl, instance.pinned, instance.origin = ttl_of(wanted), wanted.pinned, wanted.origin
        instance.names.add(wanted.name)
        instance.deaths = self.crashes.count(wanted.key)
        self.instances.add(instance)
        return instance

    def adopt(self, instance: Instance, wanted: Wanted) -> None:
        """An explicit load of what is there already: from now on it lives as this load says."""
        instance.wanted = replace(wanted, name=instance.wanted.name)
        instance.origin = wanted.origin
        instance.ttl, instance.pinned = ttl_of(wanted), wanted.pinned
        instance.names.add(wanted.name)
        # A load that takes another one's place gets its id with it.
        if wanted.identifier is not None and instance.id != wanted.identifier and instance.replaces is None:
            self.rename(instance, wanted.identifier)

    def rename(self, instance: Instance, id: str) -> None:
        self.changed(instance, gone=True)
        instance.id = id
        if instance.worker is not None:
            instance.worker.name = id
        self.changed(instance)

    # ── loading ───────────────────────────────────────────────────────────────────────────────

    def begin(self, instance: Instance, allowance: Memory) -> None:
        instance.state = State.LOADING
        instance.memory = allowance
        instance.worker = self.parked.take(instance.key)
        self.changed(instance)
        log.info("loading '%s' (%s)", instance.id, size(allowance.total), extra=about(instance))
        instance.task = asyncio.ensure_future(self._load(instance, allowance))
        instance.task.add_done_callback(partial(self._load_ended, instance))

    async def _load(self, instance: Instance, allowance: Memory) -> LoadedModel:
        if instance.worker is not None:  # it has the vocabulary already
            try:
                return await self._load_on(instance.worker, instance, allowance)
            except LmdError as error:  # it died, or what it loads has changed: another one can tell
                log.debug("the parked worker of '%s' is of no use: %s", instance.id, error, extra=about(instance))
                await instance.worker.stop(0.0)
        try:
            instance.worker = await self.standby.take()
        finally:
            # Its successor starts beside the load, whose greater part (the vocabulary) keeps one core busy: later it
            # would take a core from the first prompt.
            self.standby.refill()
        return await self._load_on(instance.worker, instance, allowance)

    async def _load_on(self, worker: Worker, instance: Instance, allowance: Memory) -> LoadedModel:
        worker.name = instance.id
        wanted = instance.wanted
        settings = self._settings()
        load = Load(
            path=str(wanted.model.path),
            params=wanted.load,
            draft_path=str(wanted.draft.path) if wanted.draft else None,
            # Where there is enough for all, nothing has to be shrunk, whatever the worker's own estimate comes to.
            free_memory=0 if instance.need.full.fits(allowance) else allowance.ram,
            free_vram=allowance.vram,
            encodes=wanted.model.header.is_embedding,
            prompt_cache=settings.prompt_cache,
        )
        return await worker.load(load, partial(self._progressed, instance), settings.load_timeout)

    def _progressed(self, instance: Instance, fraction: float) -> None:
        if fraction <= instance.progress:
            return
        instance.progress = fraction
        self.changed(instance)
        for waiter in instance.waiters:
            if waiter.on_progress is not None:
                waiter.on_progress(fraction)

    def _load_ended(self, instance: Instance, task: asyncio.Task[LoadedModel]) -> None:
        """The load's task is over, however it went: one change of state."""
        if instance.state is not State.LOADING:  # it was ended meanwhile, which `_finish` completes
            return
        if task.cancelled():
            self.end(instance, Unloaded(f"The load of '{instance.id}' was abandoned."), force=True)
        elif (error := task.exception()) is not None:
            self._load_failed(instance, error)
        else:
            self._loaded(instance, task.result())
        self._pump()

    def _load_failed(self, instance: Instance, error: BaseException) -> None:
        if not isinstance(error, LmdError):
            log.error("loading '%s' failed", instance.id, exc_info=error, extra=about(instance))
            error = LoadFailed(f"'{instance.id}' could not be loaded: {error}.")
        log.error("'%s' was not loaded: %s", instance.id, error.message, extra=about(instance))
        self.crashes.record(instance.id, instance.wanted, error, self._clock.now())
        self.tally.loads[instance.wanted.model.key, "failed"] += 1
        self.end(instance, error, force=True)

    def _loaded(self, instance: Instance, loaded: LoadedModel) -> None:
        now, wall = self._clock.now(), self._clock.wall()
        instance.state = State.READY
        instance.loaded = loaded
        instance.progress = 1.0
        instance.memory = measured(instance.need, loaded)
        instance.ready_at = instance.used_at = now
        instance.loaded_wall = instance.used_wall = wall
        for waiter in instance.waiters:
            if not waiter.future.done():
                waiter.future.set_result(None)
        instance.waiters.clear()
        assert instance.worker is not None
        instance.on_gone = partial(self._died, instance)
        instance.worker.gone.add_done_callback(instance.on_gone)
        if instance.replaces is not None:
            self._succeed(instance, instance.replaces)
        log.info("'%s' is loaded", instance.id, extra=about(instance))
        self.tally.loads[instance.wanted.model.key, "loaded"] += 1
        self.tally.load_seconds[instance.wanted.model.key] += loaded.load_seconds
        self.changed(instance)

    def _succeed(self, instance: Instance, old: Instance) -> None:
        """The new worker is up: it takes the name, the old one ends with its last lease."""
        instance.replaces = None
        before, old.replaces = old.replaces, None
        if old.state in {State.LOADING, State.READY}:
            id = old.id
            old.retiring = True
            old.replacement = None
            self.rename(old, self.instances.free_id(f"{id}:old"))
            self.rename(instance, id)
        if before is not None:  # whose place the old one was to take, had it been up before
            self._succeed(instance, before)

    def _died(self, instance: Instance, gone: asyncio.Future[LmdError]) -> None:
        """The worker of a READY instance ended by itself. What was open on it has been told by the worker."""
        if instance.state is not State.READY:
            return
        reason = gone.result()
        now = self._clock.now()
        self.tally.crashes[instance.wanted.model.key] += 1
        self.crashes.record(instance.id, instance.wanted, reason, now, lived=now - instance.ready_at)
        self.remove(instance)
        self._pump()

    # ── ending ────────────────────────────────────────────────────────────────────────────────

    def end(self, instance: Instance, reason: LmdError, force: bool = False, park: bool = False) -> None:
        """Begin to end it: from now on no request finds it. ``force``: at once, else its worker may end by itself.

        ``park``: it may be wanted again soon, and its worker stays without it where that is worth it.
        """
        if instance.state in {State.DRAINING, State.DEAD}:
            if force and instance.worker is not None:
                instance.worker.kill(reason)
            return
        for waiter in instance.waiters:
            waiter.fail(again(reason))
        instance.waiters.clear()
        if instance.state is State.QUEUED:
            self.remove(instance)
            return
        instance.state = State.DRAINING
        if force and instance.worker is not None:
            instance.worker.kill(reason)
        if instance.task is not None:
            instance.task.cancel()
        instance.ending = asyncio.ensure_future(self._finish(instance, 0.0 if force else STOP_GRACE, park))
        self.changed(instance)

    async def end_all(self, reason: LmdError) -> None:
        """End everything at once, the standby worker too. Returns when every process is reaped."""
        for instance in self.instances:
            self.end(instance, reason, force=True)
        ending = [instance.ending for instance in self.instances if instance.ending is not None]
        if ending:
            await asyncio.wait(ending)
        await self.standby.stop()
        await self.parked.stop()
        self.changes.end()

    async def _finish(self, instance: Instance, grace: float, park: bool) -> None:
        """Wait until its process is gone, or holds nothing of it but the vocabulary."""
        if instance.task is not None and not instance.task.done():
            await asyncio.wait((instance.task,))
        if instance.worker is not None and not (park and await self._park(instance, instance.worker)):
            await instance.worker.stop(grace)
        self.remove(instance)
        self._pump()

    async def _park(self, instance: Instance, worker: Worker) -> bool:
        if not (self.parked.wanted and instance.loaded is not None and instance.loaded.parks):
            return False
        if not await worker.park(STOP_GRACE):
            return False
        assert instance.on_gone is not None
        worker.gone.remove_done_callback(instance.on_gone)
        log.debug("worker %d keeps the vocabulary of '%s'", worker.pid, instance.id, extra=about(instance))
        # As long as the model itself would have stayed.
        self.parked.add(instance.key, worker, instance.used_at + instance.ttl)
        return True

    def remove(self, instance: Instance) -> None:
        instance.state = State.DEAD
        instance.memory = Memory()
        instance.closing = False
        self.instances.remove(instance)
        for other in self.instances:
            if other.replaces is instance:
                other.replaces = instance.replaces
        self.changed(instance, gone=True)

    def changed(self, instance: Instance, gone: bool = False) -> None:
        share_cores(self.instances)
        if self.changes:
            row = instance.row(self._clock.now())
            row.deaths = self.crashes.count(instance.key)
            self.changes.tell(InstanceChanged(row, gone))


def ttl_of(wanted: Wanted) -> float:
    return inf if wanted.ttl is None else wanted.ttl


def about(instance: Instance) -> dict[str, Any]:
    return fields(INSTANCE=instance.id, MODEL=instance.wanted.model.key)
