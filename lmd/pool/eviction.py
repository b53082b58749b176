"""Who leaves for whom. Pure: the pool's state as values in, a plan out; nothing here waits or looks at a clock.

The rules, in order:

1. Loads are served strictly first in, first out: a small one does not overtake a large one that waits.
2. Only idle, unpinned instances leave, the one that was used longest ago first, and only as many as are needed.
3. A load gets its full size if idle ones can make room for it, else whatever is between its floor and that.
4. An instance within its *residency* (the first seconds after its load) that falls idle is kept for a moment
   (*linger*): a client in a loop sends its next request now. So two models that do not fit together take turns of many
   requests, not of one.
5. An instance past its residency that stands in the way takes no new requests (it is *closing*): they queue for a
   load behind the one that waits, so that nobody waits for longer than what is before him takes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lmd.pool.memory import Budget, Memory, Need, total


@dataclass(frozen=True, slots=True)
class Rules:
    eviction: str = "fit"
    """"last": a load by a request makes all others that requests loaded leave."""
    max_loaded: int = 0
    residency: float = 3.0
    """Seconds from ready that an instance keeps taking requests although others wait for its memory."""
    linger: float = 0.02
    """Seconds that an idle one within its residency is left alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """An instance that has memory."""

    id: int
    memory: Memory
    leases: int = 0
    pinned: bool = False
    jit: bool = True
    loading: bool = False
    ending: bool = False
    """Its process is being ended; the memory comes back soon."""
    ready_at: float = 0.0
    used_at: float = 0.0
    """When its last lease ended, or it became ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """The load that is to begin next."""

    need: Need
    jit: bool = True
    replaces: int | None = None
    """The resident whose place it takes, pinned or not."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do for an order: refuse it, start it, or make way and wait."""

    never: bool = False
    """It can never fit."""
    allowance: Memory | None = None
    """Start it now, with at most this much; never less than its floor."""
    evict: tuple[int, ...] = ()
    closing: frozenset[int] = frozenset()
    blockers: tuple[int, ...] = ()
    """What stands in its way."""
    wake_at: float | None = None
    """When a rule about time changes this plan, if nothing else does before."""


def plan(order: Order, residents: Sequence[Resident], budget: Budget, rules: Rules, now: float) -> Plan:
    """What the order at the head of the queue needs.

    ``residents``: all that hold memory, ending ones too; ``budget.free`` is without it.
    """
    if not order.need.floor.fits(budget.capacity):
        return Plan(never=True)
    free = budget.free
    staying = [resident for resident in residents if not resident.ending]
    coming = total(resident.memory for resident in residents if resident.ending)
    goal = order.need.full.at_most(budget.capacity)

    def enough(size: Memory, gone: Sequence[Resident], room: Memory) -> bool:
        left = [resident for resident in staying if resident not in gone]
        if rules.max_loaded and len(left) >= rules.max_loaded:
            return False
        if rules.eviction == "last" and order.jit and any(resident.jit and not resident.pinned for resident in left):
            return False
        return size.fits(room + total(resident.memory for resident in gone))

    def fewest(size: Memory, candidates: Sequence[Resident]) -> list[Resident] | None:
        """The first of the candidates that make enough room, those spared that turn out not to be needed."""
        gone: list[Resident] = []
        for candidate in [None, *candidates]:
            if candidate is not None:
                gone.append(candidate)
            if enough(size, gone, free + coming):
                for spared in list(gone):
                    rest = [resident for resident in gone if resident is not spared]
                    if enough(size, rest, free + coming):
                        gone = rest
                return gone
        return None

    def may_leave(resident: Resident) -> bool:
        return not resident.loading and (not resident.pinned or resident.id == order.replaces)

    def leaves_at(resident: Resident) -> float:
        """When an idle one may be taken."""
        if resident.id == order.replaces or now >= resident.ready_at + rules.residency:
            return now
        return min(resident.used_at + rules.linger, resident.ready_at + rules.residency)

    # A replaced one stays to the last: it serves until its successor is up, where memory allows.
    by_use = sorted(filter(may_leave, staying), key=lambda r: (r.id == order.replaces, r.used_at, r.id))
    idle = [resident for resident in by_use if not resident.leases and leaves_at(resident) <= now]
    lingering = [resident for resident in by_use if not resident.leases and leaves_at(resident) > now]
    leased = [resident for resident in by_use if resident.leases]
    # Those that fall idle in a moment make the full size possible: worth the moment.
    for size, candidates in ((goal, idle), (goal, [*idle, *lingering]), (order.need.floor, idle)):
        gone = fewest(size, candidates)
        if gone is None:
            continue
        if not gone and enough(size, (), free):
            return Plan(allowance=order.need.full.at_most(free))
        waiting = [leaves_at(resident) for resident in gone if resident in lingering]
        return Plan(
            evict=tuple(resident.id for resident in gone if resident in idle),
            blockers=tuple(resident.id for resident in residents if resident.ending or resident in gone),
            wake_at=min(waiting, default=None),
        )

    victims = fewest(order.need.floor, [*idle, *lingering, *leased])
    if victims is None:  # what is pinned or still loading is in the way: nobody can help it by leaving
        return Plan(blockers=tuple(resident.id for resident in residents))
    closing = [v for v in victims if v.leases and (v.id == order.replaces or now >= v.ready_at + rules.residency)]
    times = [leaves_at(v) for v in victims if v in lingering]
    times += [v.ready_at + rules.residency for v in victims if v.leases and v not in closing]
    return Plan(
        evict=tuple(v.id for v in victims if v in idle),
        closing=frozenset(v.id for v in closing),
        blockers=tuple(v.id for v in victims),
        wake_at=min(times, default=None),
    )
