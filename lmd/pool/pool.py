"""Who is in memory, when they leave, and who waits for room: the one owner of all instances.

There is no lock and no actor: everything runs on the event loop, and every change of state is a plain
method without an ``await`` between what it checks and what it changes. Whatever changed, `_pump` follows: it looks
at the whole state, asks the pure rules (`lmd.pool.eviction`) and does what they say. The slow parts (loading, ending
a process) are tasks that come back with one such change. So a request that arrives while an instance expires
either finds it READY and holds it, or finds it gone and queues a fresh load.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import inf
from typing import Any, Protocol

from lmd.errors import LmdError, LoadFailed, Unloaded
from lmd.loading import LoadedModel, WorkerFacts
from lmd.log import fields
from lmd.pool.changes import Changes, Subscription
from lmd.pool.clock import Clock, LoopClock, Timer
from lmd.pool.crashes import Crashes
from lmd.pool.eviction import Order, Plan, Resident, Rules, plan
from lmd.pool.instance import Instance, OnProgress, State, Waiter
from lmd.pool.lease import Lease
from lmd.pool.memory import (
    Budget,
    Holding,
    Memory,
    Need,
    Probe,
    budget,
    device_memory,
    estimate,
    measured,
    probe,
    total,
)
from lmd.pool.refusals import again, identifier_taken, in_use, never_fits, no_instance, queue_timeout, size, stopping
from lmd.pool.standby import Spawn, Standby
from lmd.pool.table import Table
from lmd.pool.wanted import Origin, Wanted
from lmd.protocol import InstanceChanged, InstanceRow
from lmd.worker.messages import Load
from lmd.worker.process import Worker, WorkerProcess

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
    def load_timeout(self) -> float: ...

    @property
    def queue_timeout(self) -> float: ...


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    instance: InstanceRow
    seconds: float
    already: bool
    """It was loaded before."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a load is expected to take and what there is, in bytes."""

    weights: int
    kv: int
    compute: int
    draft: int
    total: int
    least: int
    """With which it could serve, where memory is short."""
    free: int
    capacity: int


async def _spawn() -> Worker:
    return await WorkerProcess.spawn()


class Pool:
    """``settings`` is asked anew at every decision; ``spawn`` gives a worker that has said hello. Event loop only."""

    def __init__(
        self,
        settings: Callable[[], ModelSettings],
        spawn: Spawn = _spawn,
        memory: Probe = probe,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._probe = memory
        self._clock = clock or LoopClock()
        self._standby = Standby(spawn, lambda: settings().standby, self._clock, self._learn)
        self._instances = Table()
        self._serials = count(1)
        self._crashes = Crashes()
        self._changes = Changes()
        self._blockers: tuple[Instance, ...] = ()
        """What stands in the way of the first load that waits."""
        self._timer: Timer | None = None
        self._started = False
        self._draining = False
        self._empty: asyncio.Event = asyncio.Event()
        self._vram = 0
        self.facts: WorkerFacts | None = None
        """What the newest worker said in its Hello; None before the first."""

    # ── life ──────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Spawn the standby worker, wait for its hello (or its failure), and begin to load what is asked for."""
        await self._standby.start()
        self._started = True
        self._pump()

    async def drain(self, limit: float) -> bool:
        """Refuse new leases (Draining) and wait up to ``limit`` seconds for the rest to end; False: some have not."""
        self._draining = True
        self._empty.clear()
        timer = self._clock.call_later(limit, self._empty.set)
        try:
            while self.active_leases and not self._empty.is_set():
                await self._empty.wait()
        finally:
            timer.cancel()
        return not self.active_leases

    async def stop(self) -> None:
        """End everything now: open answers and waiting requests get Draining, every process is reaped. Idempotent."""
        self._draining = True
        for instance in self._instances:
            self._end(instance, stopping(), force=True)
        ending = [instance.ending for instance in self._instances if instance.ending is not None]
        if ending:
            await asyncio.wait(ending)
        await self._standby.stop()
        if self._timer is not None:
            self._timer.cancel()
        self._empty.set()
        self._changes.end()

    @property
    def active_leases(self) -> int:
        """Requests that hold an instance, or wait for one."""
        return self._instances.leases

    @property
    def memory_used(self) -> int:
        """Bytes promised to (and, once loaded, measured of) all instances."""
        return total(instance.memory for instance in self._instances).total

    # ── requests ──────────────────────────────────────────────────────────────────────────────

    @asynccontextmanager
    async def lease(self, wanted: Wanted, on_progress: OnProgress | None = None) -> AsyncIterator[Lease]:
        """Find or load the instance and hold it to the end of the block.

        Raises QueueTimeout, InsufficientMemory, LoadFailed (or what the worker says of the file), Overloaded while the
        load backs off after crashes, Draining. Cancelling the last request that waits for a JIT load abandons it.
        """
        since = self._clock.now()
        instance = await self._hold(wanted, on_progress)
        waited = self._clock.now() - since
        try:
            lease = Lease(instance, waited)
            try:
                yield lease
            finally:
                lease.close()
        finally:
            self._release(instance)

    async def load(self, wanted: Wanted, on_progress: OnProgress | None = None, *, reload: bool = False) -> LoadOutcome:
        """Load it and leave it loaded. Clears a back-off; sets TTL, pin and identifier of what runs already.

        ``reload``: bring up a new worker though one runs; the old one ends with its last lease. Where memory does
        not allow both, the old one has to end first. Raises what `lease` raises, and Conflict on a taken identifier.
        """
        since = self._clock.now()
        self._refuse_if_draining()
        self._crashes.clear(wanted.key)
        old = self._instances.match(wanted)
        if old is None and reload:
            old = self._instances.by_id(wanted.id)
        if wanted.identifier is not None:
            holder = self._instances.by_id(wanted.identifier)
            if holder is not None and holder is not old:
                raise identifier_taken(wanted.identifier)
        already = False
        if old is not None and not (reload and old.state is State.READY):
            already = old.state is State.READY
            self._adopt(old, wanted)
            instance = old
        else:
            instance = self._create(wanted)
            instance.replaces = old
        instance = await self._wait_ready(instance, on_progress)
        try:
            return LoadOutcome(instance.row(self._clock.now()), self._clock.now() - since, already)
        finally:
            self._release(instance)

    async def preload(
        self, wanted: Sequence[Wanted], on_progress: Callable[[str, float], None] | None = None
    ) -> dict[str, LmdError]:
        """Load these one after the other, whatever becomes of each. Returns what failed, by name."""
        failed: dict[str, LmdError] = {}
        for each in wanted:
            try:
                await self.load(replace(each, origin=Origin.PRELOAD), on_progress and partial(on_progress, each.name))
            except LmdError as error:
                log.error("'%s' was not preloaded: %s", each.name, error, extra=fields(MODEL=each.model.key))
                failed[each.name] = error
        return failed

    async def unload(self, identifier: str, force: bool = False) -> str:
        """End an instance; returns its id once its memory is back. InstanceNotFound; Conflict while leased.

        With ``force`` a leased one ends too, and its answers with Unloaded.
        """
        instance = self._instances.by_id(identifier)
        if instance is None:
            if self._crashes.clear_id(identifier):
                return identifier
            raise no_instance(identifier)
        if instance.leases and not force:
            raise in_use(instance)
        self._end(instance, Unloaded(f"'{identifier}' was unloaded by the operator."), force=force)
        self._pump()
        if instance.ending is not None:
            await asyncio.wait((instance.ending,))
        return identifier

    async def unload_all(self, force: bool = False) -> list[str]:
        """End all instances that are not leased, with ``force`` all. Returns their ids."""
        chosen = [i.id for i in self._instances if (force or not i.leases) and i.state is not State.DRAINING]
        results = await asyncio.gather(*(self.unload(id, force) for id in chosen), return_exceptions=True)
        return [result for result in results if isinstance(result, str)]

    # ── what is there ─────────────────────────────────────────────────────────────────────────

    def find(self, identifier: str) -> Wanted | None:
        """What the instance of that id was loaded for: a lease of it is served by that instance (or loads it anew)."""
        instance = self._instances.by_id(identifier)
        return instance.wanted if instance is not None and instance.is_usable else None

    def rows(self) -> list[InstanceRow]:
        """Instances, then what died and is not there again."""
        now = self._clock.now()
        live = [instance.row(now) for instance in self._instances]
        for row, instance in zip(live, self._instances, strict=True):
            row.deaths = self._crashes.count(instance.key)
        keys = {instance.key for instance in self._instances}
        return live + [row for key, row in self._crashes.rows(now) if key not in keys]

    def subscribe(self) -> Subscription:
        """Every change from now on, until it is closed (``aclose``) or the pool stops."""
        return self._changes.subscribe()

    def estimate(self, wanted: Wanted) -> Estimate:
        need = self._need(wanted)
        room = self._budget()
        return Estimate(
            need.weights,
            need.kv,
            need.compute,
            need.draft,
            need.full.total,
            need.floor.total,
            max(0, room.free.total),
            max(0, room.capacity.total),
        )

    def mark_stale(self, name: str, wanted: Wanted | None) -> None:
        """What is served as ``name`` is now loaded as ``wanted`` says (None: it is served no more).

        An instance that no other name stands for becomes stale: it serves on, and once it is idle it leaves, or is
        replaced where somebody had loaded it on purpose. With None it takes no new requests and leaves after the last.
        """
        for instance in self._instances:
            if name not in instance.names and instance.wanted.name != name:
                continue
            if wanted is not None and instance.key == wanted.key:
                instance.names.add(name)
                instance.replacement = None
                if instance.origin is not Origin.EXPLICIT:
                    instance.ttl, instance.pinned = _ttl(wanted), wanted.pinned
            else:
                instance.names.discard(name)
                if not instance.names:
                    instance.replacement = wanted
                    instance.retiring = wanted is None
            self._changed(instance)
        self._pump()

    def refresh(self) -> None:
        """The settings have changed: decide anew."""
        self._standby.refill()
        self._pump()

    # ── leases ────────────────────────────────────────────────────────────────────────────────

    async def _hold(self, wanted: Wanted, on_progress: OnProgress | None) -> Instance:
        self._refuse_if_draining()
        instance = self._instances.match(wanted)
        if instance is None:
            self._crashes.check(wanted.key, self._clock.now())
            instance = self._create(wanted)
        instance.names.add(wanted.name)
        return await self._wait_ready(instance, on_progress)

    async def _wait_ready(self, instance: Instance, on_progress: OnProgress | None) -> Instance:
        """Take a lease on it, and wait with it until it is ready. Returns what is held: another one after a merge."""
        instance.leases += 1
        if instance.state is State.READY:
            self._changed(instance)
            return instance
        deadline = self._clock.now() + self._settings().queue_timeout
        waiter = Waiter(instance, asyncio.get_running_loop().create_future(), deadline, on_progress)
        instance.waiters.append(waiter)
        self._changed(instance)
        self._pump()
        try:
            await waiter.future
        except BaseException:
            if waiter in waiter.instance.waiters:
                waiter.instance.waiters.remove(waiter)
            self._release(waiter.instance)
            raise
        return waiter.instance

    def _release(self, instance: Instance) -> None:
        instance.leases -= 1
        if instance.leases == 0:
            instance.used_at, instance.used_wall = self._clock.now(), self._clock.wall()
            abandoned = instance.state is State.QUEUED or (
                instance.state is State.LOADING and instance.origin is Origin.JIT
            )
            if abandoned:
                self._end(instance, Unloaded(f"The load of '{instance.id}' was abandoned: nobody waits for it."), True)
        if instance.state is not State.DEAD:
            self._changed(instance)
        if not self.active_leases:
            self._empty.set()
        self._pump()

    def _create(self, wanted: Wanted) -> Instance:
        serial = next(self._serials)
        now = self._clock.now()
        leaving = self._instances.draining(wanted.id)
        if leaving is not None:
            self._rename(leaving, self._instances.free_id(f"{wanted.id}:old"))
        instance = Instance(serial, self._instances.free_id(wanted.id), wanted, self._need(wanted), created_at=now)
        instance.used_at = now
        instance.ttl, instance.pinned, instance.origin = _ttl(wanted), wanted.pinned, wanted.origin
        instance.names.add(wanted.name)
        instance.deaths = self._crashes.count(wanted.key)
        self._instances.add(instance)
        return instance

    def _adopt(self, instance: Instance, wanted: Wanted) -> None:
        """An explicit load of what is there already: from now on it lives as this load says."""
        instance.origin = wanted.origin
        instance.ttl, instance.pinned = _ttl(wanted), wanted.pinned
        instance.names.add(wanted.name)
        if wanted.identifier is not None and instance.id != wanted.identifier:
            self._rename(instance, wanted.identifier)

    def _rename(self, instance: Instance, id: str) -> None:
        self._changed(instance, gone=True)
        instance.id = id
        if instance.worker is not None:
            instance.worker.name = id
        self._changed(instance)

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise stopping()

    # ── the pump ──────────────────────────────────────────────────────────────────────────────

    def _pump(self) -> None:
        """Do what the state and the time ask for, and set the timer for when time alone asks for more."""
        if not self._started:
            return
        now = self._clock.now()
        self._leave_by_time(now)
        self._time_out(now)
        decided = self._decide(now)
        self._arm(decided, now)

    def _leave_by_time(self, now: float) -> None:
        """End idle instances that have expired, are stale, or are not served any more."""
        for instance in self._instances:
            if not instance.is_idle:
                continue
            if instance.replacement is not None:
                self._replace_stale(instance)
            elif instance.retiring or instance.expires_at <= now:
                self._end(instance, Unloaded(f"'{instance.id}' has expired."))

    def _replace_stale(self, instance: Instance) -> None:
        wanted = instance.replacement
        assert wanted is not None
        self._end(instance, Unloaded(f"'{instance.id}' was loaded with settings that have changed."))
        kept = instance.pinned or instance.origin is not Origin.JIT
        if kept and not self._draining and self._instances.match(wanted) is None:
            identifier = instance.id if instance.id != instance.wanted.name else None
            self._create(replace(wanted, identifier=identifier, origin=instance.origin))

    def _time_out(self, now: float) -> None:
        """Fail what has waited for memory for too long."""
        timeout = self._settings().queue_timeout
        for instance in self._instances.queue():
            for waiter in [waiter for waiter in instance.waiters if waiter.deadline <= now]:
                instance.waiters.remove(waiter)
                waiter.fail(queue_timeout(instance, timeout, self._blockers))
            if not instance.leases and instance.created_at + timeout <= now:
                log.error("%s", queue_timeout(instance, timeout, self._blockers), extra=fields(INSTANCE=instance.id))
                self._end(instance, Unloaded("Nobody waits for it."), force=True)

    def _decide(self, now: float) -> Plan:
        """Serve the queue as far as it goes: strictly in order, up to the first load that has to wait."""
        for instance in self._instances:
            instance.closing = False
        self._blockers = ()
        decided = Plan()
        while queue := self._instances.queue():
            first = queue[0]
            twin = self._instances.twin(first)
            if twin is not None:
                self._merge(first, twin)
                continue
            room = self._budget()
            decided = self._ask(first, room, now)
            if decided.never:
                self._refuse(first, room)
            elif decided.allowance is not None:
                self._begin(first, decided.allowance)
            else:
                self._make_way(decided)
                break
        # What came after it need not wait with it where its instance stays.
        for queued in self._instances.queue()[1:]:
            twin = self._instances.twin(queued)
            if twin is not None and twin.is_usable:
                self._merge(queued, twin)
        return decided

    def _ask(self, first: Instance, room: Budget, now: float) -> Plan:
        settings = self._settings()
        residents = [_resident(instance) for instance in self._instances.residents()]
        return plan(_order(first), residents, room, Rules(settings.eviction, settings.max_loaded), now)

    def _make_way(self, decided: Plan) -> None:
        self._blockers = tuple(self._instances[serial] for serial in decided.blockers)
        for serial in decided.closing:
            self._instances[serial].closing = True
        for serial in decided.evict:
            instance = self._instances[serial]
            log.info("'%s' leaves: its memory is needed", instance.id, extra=_fields(instance))
            self._end(instance, Unloaded(f"'{instance.id}' made room for another model."))

    def _merge(self, queued: Instance, twin: Instance) -> None:
        """Requests that queued for a second load go (back) to the instance that stays after all."""
        # Waiters that have failed already are not in the list: they release the instance that they know.
        twin.leases += len(queued.waiters)
        queued.leases -= len(queued.waiters)
        for waiter in queued.waiters:
            waiter.instance = twin
            if twin.state is not State.READY:
                twin.waiters.append(waiter)
            elif not waiter.future.done():
                waiter.future.set_result(None)
        queued.waiters.clear()
        twin.names |= queued.names
        if queued.origin is not Origin.JIT:
            self._adopt(twin, queued.wanted)
        self._remove(queued)
        self._changed(twin)

    def _arm(self, decided: Plan, now: float) -> None:
        times = [instance.expires_at for instance in self._instances]
        timeout = self._settings().queue_timeout
        for instance in self._instances.queue():
            times += [waiter.deadline for waiter in instance.waiters]
            if not instance.leases:
                times.append(instance.created_at + timeout)
        if decided.wake_at is not None:
            times.append(decided.wake_at)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        at = min(times, default=inf)
        if at < inf:
            # A millisecond late: a timer that rounding lets fire too early would be set again and again.
            self._timer = self._clock.call_later(max(0.0, at - now) + 0.001, self._pump)

    # ── memory ────────────────────────────────────────────────────────────────────────────────

    def _need(self, wanted: Wanted) -> Need:
        draft = wanted.draft.header if wanted.draft is not None else None
        return estimate(wanted.model.header, wanted.load, draft, self._vram)

    def _budget(self) -> Budget:
        holdings = [Holding(i.memory, i.worker.pid if i.worker else 0) for i in self._instances.residents()]
        pids = [holding.pid for holding in holdings if holding.pid]
        return budget(self._probe(pids), holdings, self._settings().memory_limit, self._vram)

    def _learn(self, facts: WorkerFacts) -> None:
        self.facts = facts
        self._vram = device_memory(facts, total(instance.memory for instance in self._instances.residents()))

    def _refuse(self, instance: Instance, room: Budget) -> None:
        limit = self._settings().memory_limit
        error = never_fits(instance.id, instance.need, room.capacity, limit if isinstance(limit, int) else None)
        self._end(instance, error, force=True)

    # ── loading ───────────────────────────────────────────────────────────────────────────────

    def _begin(self, instance: Instance, allowance: Memory) -> None:
        instance.state = State.LOADING
        instance.memory = allowance
        self._changed(instance)
        log.info("loading '%s' (%s)", instance.id, size(allowance.total), extra=_fields(instance))
        instance.task = asyncio.ensure_future(self._load(instance, allowance))
        instance.task.add_done_callback(partial(self._load_ended, instance))

    async def _load(self, instance: Instance, allowance: Memory) -> LoadedModel:
        instance.worker = await self._standby.take()
        instance.worker.name = instance.id
        wanted = instance.wanted
        settings = self._settings()
        load = Load(
            path=str(wanted.model.path),
            params=wanted.load,
            draft_path=str(wanted.draft.path) if wanted.draft else None,
            free_memory=allowance.total,
            prompt_cache=settings.prompt_cache,
        )
        return await instance.worker.load(load, partial(self._progressed, instance), settings.load_timeout)

    def _progressed(self, instance: Instance, fraction: float) -> None:
        if fraction <= instance.progress:
            return
        instance.progress = fraction
        self._changed(instance)
        for waiter in instance.waiters:
            if waiter.on_progress is not None:
                waiter.on_progress(fraction)

    def _load_ended(self, instance: Instance, task: asyncio.Task[LoadedModel]) -> None:
        """The load's task is over, however it went: one change of state."""
        self._standby.refill()
        if instance.state is not State.LOADING:  # it was ended meanwhile, which `_finish` completes
            return
        if task.cancelled():
            self._end(instance, Unloaded(f"The load of '{instance.id}' was abandoned."), force=True)
        elif (error := task.exception()) is not None:
            self._load_failed(instance, error)
        else:
            self._loaded(instance, task.result())
        self._pump()

    def _load_failed(self, instance: Instance, error: BaseException) -> None:
        if not isinstance(error, LmdError):
            log.error("loading '%s' failed", instance.id, exc_info=error, extra=_fields(instance))
            error = LoadFailed(f"'{instance.id}' could not be loaded: {error}.")
        log.error("'%s' was not loaded: %s", instance.id, error.message, extra=_fields(instance))
        self._crashes.record(instance.id, instance.wanted, error, self._clock.now())
        self._end(instance, error, force=True)

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
        instance.worker.gone.add_done_callback(lambda gone: self._died(instance, gone.result()))
        if instance.replaces is not None:
            self._succeed(instance, instance.replaces)
        log.info("'%s' is loaded", instance.id, extra=_fields(instance))
        self._changed(instance)

    def _succeed(self, instance: Instance, old: Instance) -> None:
        """The new worker is up: it takes the name, the old one ends with its last lease."""
        instance.replaces = None
        if old.state is State.READY:
            id = old.id
            old.retiring = True
            old.replacement = None
            self._rename(old, self._instances.free_id(f"{id}:old"))
            self._rename(instance, id)

    def _died(self, instance: Instance, reason: LmdError) -> None:
        """The worker of a READY instance ended by itself. What was open on it has been told by the worker."""
        if instance.state is not State.READY:
            return
        now = self._clock.now()
        self._crashes.record(instance.id, instance.wanted, reason, now, lived=now - instance.ready_at)
        self._remove(instance)
        self._pump()

    # ── ending ────────────────────────────────────────────────────────────────────────────────

    def _end(self, instance: Instance, reason: LmdError, force: bool = False) -> None:
        """Begin to end it: from now on no request finds it. ``force``: at once, else its worker may end by itself."""
        if instance.state in {State.DRAINING, State.DEAD}:
            if force and instance.worker is not None:
                instance.worker.kill(reason)
            return
        for waiter in instance.waiters:
            waiter.fail(again(reason))
        instance.waiters.clear()
        if instance.state is State.QUEUED:
            self._remove(instance)
            return
        instance.state = State.DRAINING
        if force and instance.worker is not None:
            instance.worker.kill(reason)
        if instance.task is not None:
            instance.task.cancel()
        instance.ending = asyncio.ensure_future(self._finish(instance, 0.0 if force else STOP_GRACE))
        self._changed(instance)

    async def _finish(self, instance: Instance, grace: float) -> None:
        """Wait until its process is gone."""
        if instance.task is not None and not instance.task.done():
            await asyncio.wait((instance.task,))
        if instance.worker is not None:
            await instance.worker.stop(grace)
        self._remove(instance)
        self._pump()

    def _remove(self, instance: Instance) -> None:
        instance.state = State.DEAD
        instance.memory = Memory()
        instance.closing = False
        self._instances.remove(instance)
        if not self.active_leases:
            self._empty.set()
        self._changed(instance, gone=True)

    def _changed(self, instance: Instance, gone: bool = False) -> None:
        if self._changes:
            row = instance.row(self._clock.now())
            row.deaths = self._crashes.count(instance.key)
            self._changes.tell(InstanceChanged(row, gone))


def _order(instance: Instance) -> Order:
    old = instance.replaces
    replaces = old.serial if old is not None and old.state is State.READY else None
    return Order(need=instance.need, jit=instance.origin is Origin.JIT, replaces=replaces)


def _resident(instance: Instance) -> Resident:
    return Resident(
        id=instance.serial,
        memory=instance.memory,
        leases=instance.leases,
        pinned=instance.pinned,
        jit=instance.origin is Origin.JIT,
        loading=instance.state is State.LOADING,
        ending=instance.state is State.DRAINING,
        ready_at=instance.ready_at,
        used_at=instance.used_at,
    )


def _ttl(wanted: Wanted) -> float:
    return inf if wanted.ttl is None else wanted.ttl


def _fields(instance: Instance) -> dict[str, Any]:
    return fields(INSTANCE=instance.id, MODEL=instance.wanted.model.key)
