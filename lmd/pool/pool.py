"""Who is in memory, when they leave, and who waits for room: the one owner of all instances.

INTERFACE COMMIT: bodies follow.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from lmd.generation import FinishReason  # noqa: F401
from lmd.loading import LoadedModel, WorkerFacts
from lmd.pool.wanted import Wanted
from lmd.protocol import InstanceChanged, InstanceRow
from lmd.worker.messages import Finished, Generate, Output, Prefilled, PromptText, PromptTokens

OnProgress = Callable[[float], None]
"""Called on the event loop with a load's fraction (0..1, never falling)."""


class ModelSettings(Protocol):
    """The part of ``[models]`` that the pool obeys; asked for anew at every decision. Durations in seconds, inf: never."""

    @property
    def max_loaded(self) -> int: ...

    @property
    def memory_limit(self) -> int | str: ...  # bytes, or "auto"

    @property
    def eviction(self) -> str: ...  # "fit" or "last"

    @property
    def standby(self) -> bool: ...

    @property
    def load_timeout(self) -> float: ...

    @property
    def queue_timeout(self) -> float: ...


class Generation(Protocol):
    """The answer to one `Generate`: any number of items, `Finished` last.

    ``anext`` may be cancelled (a time-out around it) without losing anything. `aclose` (also done by the
    end of the lease) cancels the sequence if it has not ended. Items that came while the consumer
    was busy come merged into one `Output`. Raises the request's LmdError (ContextLengthExceeded, …), WorkerDied, Unloaded.
    """

    def __aiter__(self) -> AsyncIterator[Output | Prefilled | Finished]: ...

    async def __anext__(self) -> Output | Prefilled | Finished: ...

    async def aclose(self) -> None: ...


class Lease(Protocol):
    """One request's hold on an instance, which cannot be unloaded (but by force) while it lasts."""

    @property
    def instance_id(self) -> str: ...

    @property
    def loaded(self) -> LoadedModel: ...

    @property
    def waited(self) -> float:
        """Seconds that this lease waited for the load; 0: it was loaded."""

    def generate(self, request: Generate) -> Generation:
        """Starts at once; ``request.id`` is assigned here. The end of the lease closes it."""

    async def tokenize(self, prompt: Sequence[PromptText | PromptTokens], add_special: bool = True) -> list[int]: ...

    async def detokenize(self, tokens: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class LoadOutcome:
    instance: InstanceRow
    seconds: float
    already: bool
    """It was loaded before."""


class Pool:
    """Pool(settings, spawn, memory, clock); all methods on the event loop's thread.

    settings: ``Callable[[], ModelSettings]``; spawn: ``async () -> Worker`` that has said hello;
    memory: probe; clock: `lmd.pool.clock.Clock`. Only ``settings`` has no default.
    """

    facts: WorkerFacts | None
    """What the newest worker said in its Hello."""
    requests_active: int

    async def start(self) -> None:
        """Spawn the standby worker. Returns once it has said hello, or could not."""
        raise NotImplementedError

    def lease(self, wanted: Wanted, on_progress: OnProgress | None = None) -> AbstractAsyncContextManager[Lease]:
        """Find or load the instance and hold it. Raises QueueTimeout, InsufficientMemory, LoadFailed, Overloaded (back-off), Draining."""
        raise NotImplementedError

    async def load(self, wanted: Wanted, on_progress: OnProgress | None = None, *, reload: bool = False) -> LoadOutcome:
        """Load and leave loaded. Clears a back-off. ``reload``: bring up a new worker even if one runs, then end the old one."""
        raise NotImplementedError

    async def preload(self, wanted: Sequence[Wanted], on_progress: Callable[[str, float], None] | None = None) -> dict[str, Exception]:
        """Load these one after the other; returns what failed, by name."""
        raise NotImplementedError

    async def unload(self, identifier: str, force: bool = False) -> str:
        """End an instance, wait until its memory is back, give its id. InstanceNotFound; Conflict while leased without ``force``."""
        raise NotImplementedError

    async def unload_all(self, force: bool = False) -> list[str]:
        """End all idle instances (with ``force`` all)."""
        raise NotImplementedError

    def find(self, identifier: str) -> Wanted | None:
        """What the live instance of that id was loaded for: lease it to be served by that instance."""
        raise NotImplementedError

    def mark_stale(self, name: str, wanted: Wanted | None) -> None:
        """The load configuration served as ``name`` is now ``wanted`` (None: no longer served, its instance drains)."""
        raise NotImplementedError

    def estimate(self, wanted: Wanted) -> dict[str, int]:
        """Bytes that loading it is expected to take: weights, kv, compute, draft, total, and what is free now."""
        raise NotImplementedError

    def rows(self) -> list[InstanceRow]:
        raise NotImplementedError

    def subscribe(self) -> AsyncIterator[InstanceChanged]:
        """Every change from now on. A subscriber that is too slow gets the latest row of each instance."""
        raise NotImplementedError

    async def drain(self, limit: float) -> bool:
        """Refuse new leases (Draining) and wait up to ``limit`` seconds for the rest; False: some are still there."""
        raise NotImplementedError

    async def stop(self) -> None:
        """End everything now: open streams get Draining, every worker is reaped."""
        raise NotImplementedError
