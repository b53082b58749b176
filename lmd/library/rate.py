"""How fast bytes come, over the last seconds. Pure: the time is passed."""

from collections import deque
from dataclasses import dataclass, field

WINDOW_SECONDS = 8.0


@dataclass(slots=True)
class Rate:
    _samples: deque[tuple[float, int]] = field(default_factory=deque)

    def add(self, now: float, received: int) -> None:
        """``received``: bytes in all, at ``now`` (seconds). Fewer than before: it was begun anew."""
        if self._samples and received < self._samples[-1][1]:
            self._samples.clear()
        self._samples.append((now, received))
        while len(self._samples) > 2 and self._samples[1][0] <= now - WINDOW_SECONDS:
            self._samples.popleft()

    def clear(self) -> None:
        self._samples.clear()

    @property
    def bytes_per_second(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (start, first), (end, last) = self._samples[0], self._samples[-1]
        return (last - first) / (end - start) if end > start else 0.0
