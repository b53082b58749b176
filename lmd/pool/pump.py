"""What the state of all instances and the time ask for, done: who leaves, who is loaded, who waits on.

The rules themselves are pure (`lmd.pool.eviction`); this looks at the whole state, asks them, and has the
`Lifecycle` carry out what they say.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from math import inf

from lmd.errors import Unloaded
from lmd.log import fields
from lmd.pool.clock import Clock, Timer
from lmd.pool.eviction import Order, Plan, Resident, Rules, plan
from lmd.pool.instance import Instance, State
from lmd.pool.lifecycle import Lifecycle, ModelSettings, about
from lmd.pool.memory import Budget
from lmd.pool.refusals import never_fits, queue_timeout
from lmd.pool.tally import Leaving
from lmd.pool.wanted import Origin

log = logging.getLogger("lmd.pool")


class Pump:
    """``run`` follows every change. It has no ``await``, so that nothing changes while it looks and acts."""

    def __init__(self, lifecycle: Lifecycle, settings: Callable[[], ModelSettings], clock: Clock) -> None:
        self._running = False
        self._lifecycle = lifecycle
        self._instances = lifecycle.instances
        self._settings = settings
        self._clock = clock
        self._blockers: tuple[Instance, ...] = ()
        """What stands in the way of the first load that waits."""
        self._timer: Timer | None = None

    def start(self) -> None:
        """From now on `run` does something: before the first worker's hello nobody knows what memory there is."""
        self._running = True
        self.run()

    def stop(self) -> None:
        self._running = False
        if self._timer is not None:
            self._timer.cancel()

    def run(self) -> None:
        """Do what the state and the time ask for, and set the timer for when time alone asks for more."""
        if not self._running:
            return
        now = self._clock.now()
        self._leave_by_time(now)
        self._time_out(now)
        decided = self._decide(now)
        self._lifecycle.parked.trim(now, busy=not self._instances.is_empty)
        self._arm(decided, now)

    def _leave_by_time(self, now: float) -> None:
        """End idle instances that have expired, are stale, or are not served any more."""
        for instance in self._instances:
            if not instance.is_idle:
                continue
            if instance.replacement is not None:
                self._replace_stale(instance)
            elif instance.retiring or instance.expires_at <= now:
                self._lifecycle.tally.evictions[Leaving.STALE if instance.retiring else Leaving.EXPIRED] += 1
                self._lifecycle.end(instance, Unloaded(f"'{instance.id}' has expired."))

    def _replace_stale(self, instance: Instance) -> None:
        wanted = instance.replacement
        assert wanted is not None
        self._lifecycle.tally.evictions[Leaving.STALE] += 1
        self._lifecycle.end(instance, Unloaded(f"'{instance.id}' was loaded with settings that have changed."))
        kept = instance.pinned or instance.origin is not Origin.JIT
        if kept and self._instances.match(wanted) is None:
            identifier = instance.id if instance.id != wanted.id else wanted.identifier
            self._lifecycle.create(replace(wanted, identifier=identifier))

    def _time_out(self, now: float) -> None:
        """Fail what has waited for memory for too long."""
        timeout = self._settings().queue_timeout
        for instance in self._instances.queue():
            for waiter in [waiter for waiter in instance.waiters if waiter.deadline <= now]:
                instance.waiters.remove(waiter)
                waiter.fail(queue_timeout(instance, timeout, self._blockers))
            if not instance.leases and instance.created_at + timeout <= now:
                log.error("%s", queue_timeout(instance, timeout, self._blockers), extra=fields(INSTANCE=instance.id))
                self._lifecycle.end(instance, Unloaded("Nobody waits for it."), force=True)

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
            room = self._lifecycle.budget()
            decided = self._ask(first, room, now)
            if self._parked_are_in_the_way(first, room, decided):
                break  # asked again when they have ended
            if decided.never:
                self._refuse(first, room)
            elif decided.allowance is not None:
                self._lifecycle.begin(first, decided.allowance)
            else:
                self._make_way(decided)
                if not decided.evict:
                    break
                # Asked again at once: where those only were too many, and memory is there, they end beside the load.
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

    def _parked_are_in_the_way(self, first: Instance, room: Budget, decided: Plan) -> bool:
        """Whether what parked workers hold is missed, and they are on their way out."""
        if first.need.full.fits(room.free) or decided.evict:
            return False
        return self._lifecycle.parked.clear(but=None if decided.never else first.key)

    def _make_way(self, decided: Plan) -> None:
        self._blockers = tuple(self._instances[serial] for serial in decided.blockers)
        for serial in decided.closing:
            self._instances[serial].closing = True
        for serial in decided.evict:
            instance = self._instances[serial]
            log.info("'%s' leaves: its memory is needed", instance.id, extra=about(instance))
            self._lifecycle.tally.evictions[Leaving.MEMORY] += 1
            self._lifecycle.end(instance, Unloaded(f"'{instance.id}' made room for another model."), park=True)

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
            self._lifecycle.adopt(twin, queued.wanted)
        self._lifecycle.remove(queued)
        self._lifecycle.changed(twin)

    def _arm(self, decided: Plan, now: float) -> None:
        times = [self._lifecycle.parked.expires_at, *(instance.expires_at for instance in self._instances)]
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
            self._timer = self._clock.call_later(max(0.0, at - now) + 0.001, self.run)

    def _refuse(self, instance: Instance, room: Budget) -> None:
        limit = self._settings().memory_limit
        error = never_fits(instance.id, instance.need, room.capacity, limit if isinstance(limit, int) else None)
        self._lifecycle.end(instance, error, force=True)


def _order(instance: Instance) -> Order:
    old = instance.replaces
    while old is not None and old.state is not State.READY:
        old = old.replaces
    replaces = old.serial if old is not None else None
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
