"""What a request needs in memory: the pool's side of a resolved name."""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol, Self

from lmd.library.header import Header
from lmd.loading import LoadParams


class ModelFiles(Protocol):
    """What the pool needs to know of a `lmd.library.catalog.Model`."""

    @property
    def key(self) -> str: ...

    @property
    def path(self) -> Path: ...

    @property
    def header(self) -> Header: ...


class Origin(StrEnum):
    """Who asked for an instance. Decides what may happen to it when nobody waits for it."""

    JIT = "jit"
    """A request: abandoned when its last waiter leaves, counted by ``eviction = "last"``."""
    EXPLICIT = "explicit"
    """``lmctl load``: goes on when the caller leaves, and clears a back-off."""
    PRELOAD = "preload"
    """A preset with ``preload = true``, at start."""


@dataclass(frozen=True, slots=True)
class InstanceKey:
    """What makes two loads the same: the pool never holds two usable instances of one key."""

    path: str
    load: LoadParams
    draft_path: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One load that somebody needs. Everything is resolved: no name is looked up behind this."""

    model: ModelFiles
    name: str
    """The served name (preset or model key): the instance's id where ``identifier`` does not say otherwise."""
    load: LoadParams = field(default_factory=LoadParams)
    draft: ModelFiles | None = None
    ttl: float | None = None
    """Seconds of idleness that the instance survives; None: never expires. Counts for the load that this starts."""
    pinned: bool = False
    """Never evicted, never expires."""
    ttl_is_own: bool = False
    """``ttl`` and ``pinned`` were said for this load; else they are its name's, and follow when that is edited."""
    overrides: LoadParams = field(default_factory=LoadParams)
    """What of ``load`` was said for this load, over what its name stands for."""
    identifier: str | None = None
    origin: Origin = Origin.JIT

    @property
    def key(self) -> InstanceKey:
        return InstanceKey(str(self.model.path), self.load, str(self.draft.path) if self.draft else None)

    @property
    def id(self) -> str:
        return self.identifier or self.name

    def renewed(self, edited: Self) -> "Wanted":
        """What this load is, now that its name stands for ``edited``: what was said for it alone stays."""
        return replace(
            self,
            model=edited.model,
            name=edited.name,
            load=self.overrides.over(edited.load),
            draft=self.draft if self.overrides.draft_model else edited.draft,
            ttl=self.ttl if self.ttl_is_own else edited.ttl,
            pinned=self.pinned if self.ttl_is_own else edited.pinned,
        )
