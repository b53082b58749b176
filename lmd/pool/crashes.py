"""What died, how often, and when it may be tried again."""

from dataclasses import dataclass

from lmd.errors import InvalidRequest, LmdError, Overloaded, again
from lmd.pool.wanted import InstanceKey, Wanted
from lmd.protocol import InstanceRow

FIRST_DELAY = 1.0
LONGEST_DELAY = 300.0
STEADY = 60.0
"""Seconds of life after which a death is not counted together with those before."""
REMEMBERED = 600.0
"""Seconds after the delay for which a death is still shown and counted."""


def delay(count: int) -> float:
    """Seconds to wait after the ``count``-th death in a row: 0, then 1, 2, 4 … up to LONGEST_DELAY."""
    return 0.0 if count <= 1 else min(LONGEST_DELAY, FIRST_DELAY * 2.0 ** min(count - 2, 32))


@dataclass(frozen=True, slots=True)
class Crash:
    id: str
    wanted: Wanted
    count: int
    at: float
    error: LmdError

    @property
    def retry_at(self) -> float:
        return self.at + delay(self.count)


class Crashes:
    """Deaths by instance key. Bounded: what is old is forgotten."""

    def __init__(self) -> None:
        self._by_key: dict[InstanceKey, Crash] = {}

    def record(self, id: str, wanted: Wanted, error: LmdError, now: float, lived: float = 0.0) -> Crash:
        """``lived``: seconds from ready to the death; 0 for a load that failed."""
        self._forget(now)
        before = self._by_key.get(wanted.key)
        count = before.count + 1 if before is not None and lived < STEADY else 1
        crash = self._by_key[wanted.key] = Crash(id, wanted, count, now, error)
        return crash

    def count(self, key: InstanceKey) -> int:
        return self._by_key[key].count if key in self._by_key else 0

    def clear(self, key: InstanceKey) -> None:
        self._by_key.pop(key, None)

    def clear_id(self, id: str) -> bool:
        """Forget what died under this id; whether there was such a thing."""
        keys = [key for key, crash in self._by_key.items() if crash.id == id]
        for key in keys:
            del self._by_key[key]
        return bool(keys)

    def check(self, key: InstanceKey, now: float) -> None:
        """Raises Overloaded while this load must not be tried, and again the InvalidRequest that asking for it was."""
        crash = self._by_key.get(key)
        if crash is not None and isinstance(crash.error, InvalidRequest) and now < crash.at + STEADY:
            # The request's own mistake, which no waiting mends: as the first time, without loading anything.
            raise again(crash.error)
        if crash is not None and now < crash.retry_at:
            wait = crash.retry_at - now
            raise Overloaded(
                f"'{crash.id}' failed {crash.count} times in a row and is tried again in {wait:.0f} s. "
                f"The last time: {crash.error.message}",
                hint=f"`lmctl load {crash.id}` tries at once.",
                retry_after=wait,
            )

    def rows(self, now: float) -> list[tuple[InstanceKey, InstanceRow]]:
        self._forget(now)
        return [
            (
                key,
                InstanceRow(
                    id=crash.id,
                    model=crash.wanted.model.key,
                    state="backoff" if now < crash.retry_at else "dead",
                    progress=0.0,
                    error=crash.error.message,
                    deaths=crash.count,
                    retry_in=max(0.0, crash.retry_at - now) or None,
                ),
            )
            for key, crash in self._by_key.items()
            if not isinstance(crash.error, InvalidRequest)
        ]

    def _forget(self, now: float) -> None:
        for key in [key for key, crash in self._by_key.items() if crash.retry_at + REMEMBERED < now]:
            del self._by_key[key]
