"""What has happened in the pool since the daemon's start, counted where it happens and read by whoever asks."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from enum import StrEnum


class Leaving(StrEnum):
    """Why an instance that was loaded left, beside dying."""

    EXPIRED = "expired"
    MEMORY = "memory"
    """Another model needed its memory."""
    STALE = "stale"
    """Its settings were edited, or its preset removed."""
    UNLOADED = "unloaded"
    """Somebody asked for it."""


@dataclass(slots=True)
class Tally:
    """Only ever grows. Models are counted by their keys, of which there are as many as on disk."""

    loads: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(model key, "loaded" or "failed")."""
    load_seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Of loads that succeeded, by model key."""
    evictions: Counter[Leaving] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    """Deaths of ready instances, by model key."""
