"""Why the pool does not serve a request, in words."""

from collections.abc import Iterable

from lmd.errors import Conflict, Draining, InstanceNotFound, InsufficientMemory, QueueTimeout
from lmd.pool.instance import Instance, State
from lmd.pool.memory import MIB, Memory, Need


def size(amount: int) -> str:
    return f"{amount / 2**30:.1f} GiB" if amount >= 2**30 else f"{amount / MIB:.0f} MiB"


def stopping() -> Draining:
    return Draining("The daemon is stopping.", hint="Try again when it has been restarted.", retry_after=5.0)


def queue_timeout(instance: Instance, timeout: float, blockers: Iterable[Instance]) -> QueueTimeout:
    way = ", ".join(_describe(blocker) for blocker in blockers) or "other loads that wait"
    return QueueTimeout(
        f"'{instance.id}' waited {timeout:g} s for {size(instance.need.total)} of memory. In the way: {way}.",
        hint="Try again later, or unload a model: `lmctl unload ID`.",
        retry_after=10.0,
    )


def _describe(blocker: Instance) -> str:
    why = blocker.state.value
    if blocker.state is State.READY:
        why = "pinned" if blocker.pinned else f"{blocker.leases} open requests" if blocker.leases else "idle"
    return f"'{blocker.id}' ({size(blocker.memory.total)}, {why})"


def never_fits(id: str, need: Need, capacity: Memory, limit: int | None) -> InsufficientMemory:
    reason = f" ([models] memory_limit is {size(limit)})" if limit is not None else ""
    return InsufficientMemory(
        f"'{id}' needs at least {size(need.floor.total)} (weights {size(need.weights)}), and with every other model "
        f"unloaded {size(max(0, capacity.total))} would be free{reason}.",
        hint="Use a smaller quantization, or a smaller context_length, kv_cells or parallel.",
    )


def no_instance(id: str) -> InstanceNotFound:
    return InstanceNotFound(f"No model is loaded as '{id}'.", hint="`lmctl ps` lists what is loaded.")


def in_use(instance: Instance) -> Conflict:
    noun = "request" if instance.leases == 1 else "requests"
    return Conflict(
        f"'{instance.id}' is serving {instance.leases} {noun}.",
        hint=f"Wait for the end, or end it now: `lmctl unload {instance.id} --force`.",
    )


def identifier_taken(id: str) -> Conflict:
    return Conflict(
        f"'{id}' is the identifier of another loaded model.",
        hint=f"`lmctl unload {id}` first, or choose another identifier.",
    )
