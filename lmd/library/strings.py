"""Steps over the strings of a GGUF array (u64 length, bytes, u64 length, bytes, …) without a Python step for each.

Where string n+1 begins is known only from the length of string n, so the walk is sequential by nature: 300 k strings
cost some 30 ms in a Python loop. But a chain can be *proved* for all its links at once. Lengths below 256 are a byte
and seven zeros, and text has no zeros; so wherever an aligned 32-bit word is zero there is probably a length around
it. If every such place holds the distance to the next one, the places are the chain, by induction from its known
beginning. A place that is no length, or a length that is not seen, breaks the chain there, and the caller walks over
it: a wrong guess costs time and never truth.
"""

from collections import OrderedDict
from threading import Lock

import numpy as np

_SHIFT_AWAY = np.array([1 << 8, 1 << 16, 1 << 24, 0], dtype=np.uint32)
"""What multiplies a word's low 3, 2, 1, 0 bytes to its top, and the rest out of it."""


#: Windows seen of late, the newest last: their data (b"" after the first sight) and what was proved of them.
_seen: OrderedDict[tuple[int, bytes], tuple[bytes, tuple[int, int]]] = OrderedDict()
_MAX_SEEN = 128
"""16 MiB of windows: the vocabularies of three families."""
_lock = Lock()


def proven_strings(data: bytes, limit: int) -> tuple[int, int]:
    """How many of the at most ``limit`` strings that ``data`` begins with are certain, and where the next one begins.

    (0, 0) when nothing can be said. Files of one family (quantizations, fine-tunes) have the same vocabulary byte for
    byte, so the same data comes back; comparing it is ten times as fast as proving it. What comes once is not kept.
    """
    key = limit, data[-64:]
    with _lock:
        known, result = _seen.get(key, (None, (0, 0)))
    if known == data:
        return result
    result = _prove(data, limit)
    with _lock:
        _seen[key] = b"" if known is None else data, result
        _seen.move_to_end(key)
        if len(_seen) > _MAX_SEEN:
            _seen.popitem(last=False)
    return result


def forget() -> None:
    """Give back the memory of the windows seen."""
    with _lock:
        _seen.clear()


def _prove(data: bytes, limit: int) -> tuple[int, int]:
    words = np.frombuffer(data, "<u4", count=len(data) // 4)
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
    count = min(count, limit)
    return count, int(starts[count])
