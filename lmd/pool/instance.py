"""One model in memory, or on its way there. Plain state, which nothing outside `lmd.pool.pool.Pool` changes."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from lmd.errors import LmdError
from lmd.loading import LoadedModel
from lmd.pool.memory import Memory, Need
from lmd.pool.wanted import InstanceKey, Origin, Wanted
from lmd.protocol import InstanceRow
from lmd.worker.process import Worker

OnProgress = Callable[[float], None]


class State(StrEnum):
    """Where an instance is in its life; they follow each other, and any may be followed by DRAINING."""

    QUEUED = "starting"
    """It waits for memory, and has none."""
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    """Its process is being ended; its memory is not free yet."""
    DEAD = "dead"
    """Its process is gone, and so is the instance: the pool does not know it any more."""


@dataclass(eq=False, slots=True)
class Waiter:
    """A request that holds a lease on an instance that is not ready. A merge changes ``instance``."""

    instance: "Instance"
    future: asyncio.Future[None]
    deadline: float
    """While the instance is QUEUED; afterwards the load has a time limit of its own."""
    on_progress: OnProgress | None

    def fail(self, error: LmdError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


@dataclass(eq=False, slots=True)
class Instance:
    serial: int
    id: str
    wanted: Wanted
    """What it was loaded for."""
    need: Need
    created_at: float
    ttl: float = inf
    pinned: bool = False
    origin: Origin = Origin.JIT
    names: set[str] = field(default_factory=set)
    """Served names whose current load configuration this is."""
    state: State = State.QUEUED
    memory: Memory = field(default_factory=Memory)
    """Promised to it, then measured; nothing while QUEUED."""
    worker: Worker | None = None
    loaded: LoadedModel | None = None
    leases: int = 0
    sharers: int = 1
    """Among how many instances its worker was told to share the cores."""
    waiters: list[Waiter] = field(default_factory=list)
    progress: float = 0.0
    ready_at: float = 0.0
    used_at: float = 0.0
    loaded_wall: float = 0.0
    used_wall: float = 0.0
    closing: bool = False
    """It takes no new leases, because a load waits for its memory."""
    retiring: bool = False
    """It takes no new leases and ends with the last one: its preset is gone, or its successor is up."""
    replacement: Wanted | None = None
    """Stale: what its names stand for now. It serves on until it is idle."""
    replaces: "Instance | None" = None
    task: asyncio.Task[LoadedModel] | None = None
    ending: asyncio.Task[None] | None = None
    on_gone: Callable[[asyncio.Future[LmdError]], None] | None = None
    """Called when its worker has ended."""
    deaths: int = 0

    @property
    def key(self) -> InstanceKey:
        return self.wanted.key

    @property
    def has_memory(self) -> bool:
        return self.state in {State.LOADING, State.READY, State.DRAINING}

    @property
    def is_idle(self) -> bool:
        return self.state is State.READY and self.leases == 0

    @property
    def is_usable(self) -> bool:
        """A new request may join it."""
        return self.state in {State.QUEUED, State.LOADING, State.READY} and not (self.closing or self.retiring)

    @property
    def expires_at(self) -> float:
        """When it has been idle for its TTL; inf while it is in use, pinned, or never expires."""
        return self.used_at + self.ttl if self.is_idle and not self.pinned else inf

    def row(self, now: float) -> InstanceRow:
        stats = self.worker.stats if self.worker is not None else None
        loaded = self.loaded
        draining = self.state is State.READY and self.retiring
        row = InstanceRow(
            id=self.id,
            model=self.wanted.model.key,
            state=State.DRAINING.value if draining else self.state.value,
            pid=self.worker.pid if self.worker is not None else 0,
            progress=1.0 if loaded is not None else self.progress,
            leases=self.leases,
            memory=self.memory.total,
            ttl=self.ttl if self.ttl < inf else None,
            expires_in=max(0.0, self.expires_at - now) if self.expires_at < inf else None,
            pinned=self.pinned,
            stale=self.replacement is not None,
            loaded_at=self.loaded_wall,
            last_used_at=self.used_wall,
            deaths=self.deaths,
            queued=len(self.waiters),
        )
        if loaded is not None:
            row.context_length = loaded.context_length
            row.parallel = loaded.parallel
            row.kv_cells = loaded.kv_cells
            row.gpu_layers = loaded.gpu_layers
            row.batch = loaded.batch
            row.flash_attention = loaded.flash_attention
        if stats is not None:
            row.running, row.queued = stats.running, stats.queued
            row.kv_used = stats.kv_used
            row.decode_tps, row.prompt_tps = stats.decode_tps, stats.prompt_tps
            row.prompt_tokens, row.cached_tokens = stats.prompt_tokens, stats.cached_tokens
        return row
