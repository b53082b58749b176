"""Who is in memory, when they leave, and who waits for room: the one owner of all instances.

There is no lock and no actor: everything runs on the event loop, and every change of state is a plain
method without an ``await`` between what it checks and what it changes. Whatever changed, the pump (`lmd.pool.pump`)
follows: it looks at the whole state, asks the pure rules (`lmd.pool.eviction`) and has `lmd.pool.lifecycle` do what
they say. So a request that arrives while an instance expires either finds it READY and holds it, or finds it gone and
queues a fresh load.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from lmd.errors import LmdError, Unloaded
from lmd.loading import WorkerFacts
from lmd.log import fields
from lmd.pool.changes import Subscription
from lmd.pool.clock import Clock, LoopClock
from lmd.pool.instance import Instance, OnProgress, State, Waiter
from lmd.pool.lease import Lease
from lmd.pool.lifecycle import Lifecycle, ModelSettings, ttl_of
from lmd.pool.liveness import overdue
from lmd.pool.memory import Budget, Probe, probe, total
from lmd.pool.pump import Pump
from lmd.pool.refusals import identifier_taken, in_use, no_instance, stopping
from lmd.pool.standby import Spawn
from lmd.pool.tally import Leaving, Tally
from lmd.pool.wanted import Origin, Wanted
from lmd.protocol import Estimate, InstanceRow
from lmd.worker.process import Worker, WorkerProcess

log = logging.getLogger("lmd.pool")


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    instance: InstanceRow
    seconds: float
    already: bool
    """It was loaded before."""


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
        self._clock = clock or LoopClock()
        # Through a name that is bound below: each of the two needs the other.
        self._lifecycle = Lifecycle(settings, spawn, memory, self._clock, lambda: self._pump.run())  # noqa: PLW0108
        self._instances = self._lifecycle.instances
        self._crashes = self._lifecycle.crashes
        self._pump = Pump(self._lifecycle, settings, self._clock)
        self._draining = False

    # ── life ──────────────────────────────────────────────────────────────────────────────────

    async def start(self) -> None:
        """Spawn the standby worker, wait for its hello (or its failure), and begin to load what is asked for."""
        await self._lifecycle.standby.start()
        self._pump.start()

    async def stop(self) -> None:
        """End everything now: open answers and waiting requests get Draining, every process is reaped. Idempotent."""
        self._draining = True
        self._pump.stop()
        await self._lifecycle.end_all(stopping())

    @property
    def facts(self) -> WorkerFacts | None:
        """What the newest worker said in its Hello; None before the first."""
        return self._lifecycle.facts

    @property
    def is_empty(self) -> bool:
        """No instance is there, on its way or on its way out."""
        return self._instances.is_empty

    def overdue(self) -> str:
        """What it should have done and has not, in words, for a watchdog; "" when all is well. True for an instant
        of a healthy pool: one that says it at two looks is stuck."""
        return overdue(self._instances, self._clock.now())

    @property
    def tally(self) -> Tally:
        return self._lifecycle.tally

    @property
    def active_leases(self) -> int:
        """Requests that hold an instance, or wait for one."""
        return self._instances.leases

    @property
    def memory_used(self) -> int:
        """Bytes promised to (and, once loaded, measured of) all instances."""
        return total(instance.memory for instance in self._instances).total

    # ── requests ──────────────────────────────────────────────────────────────────────────────

    async def acquire(self, wanted: Wanted, on_progress: OnProgress | None = None) -> Lease:
        """Find or load the instance and hold it until the lease is closed.

        Raises QueueTimeout, InsufficientMemory, LoadFailed (or what the worker says of the file), Overloaded while the
        load backs off after crashes, Draining. Cancelling the last request that waits for a JIT load abandons it.
        """
        since = self._clock.now()
        instance = await self._hold(wanted, on_progress)
        waited = self._clock.now() - since if instance.ready_at > since else 0.0
        return Lease(instance, waited, self._release)

    @asynccontextmanager
    async def lease(self, wanted: Wanted, on_progress: OnProgress | None = None) -> AsyncIterator[Lease]:
        """`acquire` for the length of the block."""
        lease = await self.acquire(wanted, on_progress)
        try:
            yield lease
        finally:
            lease.close()

    async def load(self, wanted: Wanted, on_progress: OnProgress | None = None, *, reload: bool = False) -> LoadOutcome:
        """Load it and leave it loaded. Clears a back-off; sets TTL, pin and identifier of what runs already.

        ``reload``: bring up a new worker though one runs, as is always done for a stale one; the old one ends with its
        last lease. Where memory does not allow both, the old one has to end first. Raises what `acquire` raises, and
        Conflict on a taken identifier.
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
        if old is not None and old.replacement is not None:
            reload = True  # it runs, but with settings that have been edited since
        if old is not None and reload:
            old = self._instances.last_to_replace(old)
        already = False
        # What loads another configuration cannot become this one: it is replaced, like one that is ready.
        if old is not None and old.key == wanted.key and not (reload and old.state is State.READY):
            already = old.state is State.READY
            self._lifecycle.adopt(old, wanted)
            instance = old
        else:
            instance = self._lifecycle.create(wanted)
            instance.replaces = old
        instance = await self._wait_ready(instance, on_progress)
        try:
            return LoadOutcome(instance.row(self._clock.now()), self._clock.now() - since, already)
        finally:
            self._release(instance)

    async def preload(
        self, wanted: Sequence[Wanted], on_progress: Callable[[str, float], None] | None = None
    ) -> dict[str, LmdError]:
        """Load these one after the other, whatever becomes of each. Returns what failed, by name.

        ``on_progress`` hears of each load's begin, too.
        """
        failed: dict[str, LmdError] = {}
        for each in wanted:
            if on_progress is not None:
                on_progress(each.name, 0.0)
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
        if instance.state is State.READY:
            self._lifecycle.tally.evictions[Leaving.UNLOADED] += 1
        self._lifecycle.end(instance, Unloaded(f"'{identifier}' was unloaded by the operator."), force=force)
        self._pump.run()
        if instance.ending is not None:
            await asyncio.wait((instance.ending,))
        return identifier

    async def unload_all(self, force: bool = False) -> list[str]:
        """End all instances that are not leased, with ``force`` all. Returns their ids."""
        chosen = [i.id for i in self._instances if (force or not i.leases) and i.state is not State.DRAINING]
        self.drop_parked()
        results = await asyncio.gather(*(self.unload(id, force) for id in chosen), return_exceptions=True)
        return [result for result in results if isinstance(result, str)]

    def drop_parked(self) -> None:
        """Let go of the files of models that are not loaded any more."""
        self._lifecycle.parked.clear()

    # ── what is there ─────────────────────────────────────────────────────────────────────────

    def find(self, identifier: str) -> Wanted | None:
        """What the instance of that id was loaded for: a lease of it is served by that instance (or loads it anew).

        None also where its name stands for something else now, and other names keep it.
        """
        instance = self._instances.by_id(identifier)
        if instance is None or not instance.is_usable:
            return None
        left = instance.id == instance.wanted.name and instance.id not in instance.names
        return instance.wanted if instance.replacement is not None or not left else None

    def holds(self, wanted: Wanted) -> bool:
        """Whether an instance is there that a lease of ``wanted`` would be served by."""
        return self._instances.match(wanted) is not None

    def names(self) -> dict[str, list[str]]:
        """Served names that instances stand for, and the ids of these."""
        ids: dict[str, list[str]] = {}
        for instance in self._instances:
            for name in instance.names:
                ids.setdefault(name, []).append(instance.id)
        return ids

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
        return self._lifecycle.changes.subscribe()

    def estimate(self, wanted: Wanted) -> Estimate:
        need = self._lifecycle.need(wanted)
        room = self._lifecycle.budget()
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

    def room(self) -> Budget:
        """What there is for models: free now, and once every instance has left. Bytes."""
        return self._lifecycle.budget()

    def mark_stale(self, name: str, wanted: Wanted | None) -> None:
        """What is served as ``name`` is now loaded as ``wanted`` says (None: it is served no more).

        An instance that no other name stands for becomes stale: it serves on, and once it is idle it leaves, or is
        replaced where somebody had loaded it on purpose; what was said for that load alone stays. With None it takes
        no new requests and leaves after the last, also where the name comes back: another one may have its key by then.
        """
        for instance in self._instances:
            if instance.retiring or (name not in instance.names and instance.wanted.name != name):
                continue
            renewed = None if wanted is None else instance.wanted.renewed(wanted)
            if renewed is not None and instance.key == renewed.key:
                instance.names.add(name)
                instance.replacement = None
                instance.ttl, instance.pinned = ttl_of(renewed), renewed.pinned
            else:
                instance.names.discard(name)
                if not instance.names:
                    instance.replacement = renewed
                    instance.retiring = renewed is None
            self._lifecycle.changed(instance)
        self._pump.run()

    def refresh(self) -> None:
        """The settings have changed: decide anew."""
        self._lifecycle.standby.refill()
        self._pump.run()

    # ── leases ────────────────────────────────────────────────────────────────────────────────

    async def _hold(self, wanted: Wanted, on_progress: OnProgress | None) -> Instance:
        self._refuse_if_draining()
        instance = self._instances.match(wanted)
        if instance is None:
            self._crashes.check(wanted.key, self._clock.now())
            instance = self._lifecycle.create(wanted)
        instance.names.add(wanted.name)
        return await self._wait_ready(instance, on_progress)

    async def _wait_ready(self, instance: Instance, on_progress: OnProgress | None) -> Instance:
        """Take a lease on it, and wait with it until it is ready. Returns what is held: another one after a merge."""
        instance.leases += 1
        if instance.state is State.READY:
            self._lifecycle.changed(instance)
            return instance
        deadline = self._clock.now() + self._settings().queue_timeout
        waiter = Waiter(instance, asyncio.get_running_loop().create_future(), deadline, on_progress)
        instance.waiters.append(waiter)
        self._lifecycle.changed(instance)
        self._pump.run()
        try:
            await waiter.future
        except BaseException:
            if waiter in waiter.instance.waiters:
                waiter.instance.waiters.remove(waiter)
            self._release(waiter.instance)
            del waiter  # it has the error, whose traceback has this frame and those of the request
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
                self._lifecycle.end(
                    instance, Unloaded(f"The load of '{instance.id}' was abandoned: nobody waits for it."), True
                )
        if instance.state is not State.DEAD:
            self._lifecycle.changed(instance)
        self._pump.run()

    def _refuse_if_draining(self) -> None:
        if self._draining:
            raise stopping()
