"""Steps over the strings of a GGUF array (u64 length, bytes, u64 length, bytes, …) without a Python step for each.

Where string n+1 begins is known only from the length of string n, so the walk is sequential by nature: 300 k strings
cost some 30 ms in a Python loop. But a chain can be *proved* for all its links at once. Lengths below 256 are a byte
and seven zeros, and text has no zeros; so wherever an aligned 32-bit word is zero there is probably a length around
it. If every such place holds the distance to the next one, the places are the chain, by induction from its known
beginning. A place that is no length, or a length that is not seen, breaks the chain there, and the caller walks over
it: a wrong guess costs time and never truth.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

_SHIFT_AWAY = np.array([1 << 8, 1 << 16, 1 << 24, 0], dtype=np.uint32)
"""What multiplies a word's low 3, 2, 1, 0 bytes to its top, and the rest out of it."""


@dataclass(frozen=True, slots=True)
class Window:
    """``data`` begins with at least ``limit`` strings, or with as many as it can hold.

    Files of one family (quantizations, fine-tunes) have the same vocabulary byte for byte, so windows come back;
    comparing two is ten times as fast as proving one. Hence a hash that looks at a few bytes only.
    """

    data: bytes
    limit: int

    def __hash__(self) -> int:
        return hash((self.limit, self.data[-64:]))


@lru_cache(maxsize=128)  # 16 MiB of windows: the vocabularies of three families
def proven_strings(window: Window) -> tuple[int, int]:
    """How many of the strings are certain, and where the next one begins; (0, 0): nothing can be said."""
    words = np.frombuffer(window.data, "<u4", count=len(window.data) // 4)
    # Index n of these three is the word before, at, and after a place.
    place = np.flatnonzero(words[1:-1] == 0)
    if not len(place):
        return 0, 0
    before = words[:-2].take(place)
    after = words[2:].take(place)
    # How many bytes just before the zero word are zero too (at most 3 matter): the length's low byte precedes them.
    zeros = (before < 1 << 24).view(np.uint8) + (before < 1 << 16).view(np.uint8)
    zeros += (before < 1 << 8).view(np.uint8)
    # Of the length's seven high bytes 4 + zeros are zero by now; the rest are the low ones of the word after.
    whole = after * _SHIFT_AWAY.take(zeros) == 0
    lengths = (before >> (24 - 8 * zeros)).view(np.int32)
    starts = place.astype(np.int32)
    starts *= 4
    starts += 3
    starts -= zeros
    ends = starts + lengths
    ends += 8
    holds = (ends[:-1] == starts[1:]) & whole[:-1]
    if starts[0] != 0:
        return 0, 0
    count = len(holds) if holds.all() else int(holds.argmin())
    count = min(count, window.limit)
    return count, int(starts[count])
