"""From the bytes of tokens to text that may be shown: whole characters, and nothing that may be a stop string."""

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Bytes in, text out; a character split over tokens is held back until it is whole.

    Bytes that are no UTF-8 become U+FFFD, as soon as it is certain that they are none.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, data: bytes) -> str:
        return self._decoder.decode(data)

    def flush(self) -> str:
        """What is left: a started character that will never be whole becomes one U+FFFD."""
        return self._decoder.decode(b"", final=True)


class StopStrings:
    """Finds the first stop string in text that arrives in pieces.

    Text that may be the beginning of a stop string is held back. The stop that is complete first ends the text;
    of two that complete with the same character, the longer.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._longest = max(map(len, self._stops), default=0)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """Text that is certain. After a stop was `found`, always empty."""
        if not self._stops:
            return text
        if self.found is not None:
            return ""
        self._held += text
        hits = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if hits:
            _, at, self.found = min(hits)
            sure, self._held = self._held[:at], ""
            return sure
        safe = self._certain()
        sure, self._held = self._held[:safe], self._held[safe:]
        return sure

    def _certain(self) -> int:
        """The first index at which the held text may be the unfinished beginning of a stop string."""
        held = self._held
        for start in range(max(0, len(held) - self._longest + 1), len(held)):
            tail = held[start:]
            if any(stop.startswith(tail) for stop in self._stops):
                return start
        return len(held)

    def flush(self) -> str:
        """The text held back, when no more will come."""
        held, self._held = self._held, ""
        return held
