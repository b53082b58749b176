"""KV sequences and what they hold: prefix reuse, sharing, retention and the count of cells.

A slot is one llama.cpp sequence id. After its owner ends it keeps its tokens until another sequence needs the slot or
its cells, so that a conversation's next turn, or anybody with the same beginning, computes only what is new.

Slots share one pool of cells, or have a stream of cells each (`Memory.streams`). In a pool a prefix is shared as it is,
and attention passes over the cells of all. Of streams a prefix is copied, and llama.cpp computes together only
those that are neighbours.
"""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence as Seq
from typing import Protocol

import numpy as np


class Memory(Protocol):
    """The part of `lmd.engine.context.Context` that slots need."""

    n_cells: int
    streams: bool
    """Each sequence has cells of its own; together they are ``n_cells``."""

    def cut(self, seq_id: int, start: int) -> bool: ...
    def whole_at(self, seq_id: int, n: int) -> bool: ...
    def share(self, source: int, target: int, n: int) -> None: ...
    def save(self, seq_id: int) -> bytes: ...
    def restore(self, seq_id: int, state: bytes) -> bool: ...
    def is_copying(self, seq_id: int) -> bool: ...


def common_prefix(a: Seq[int], b: Seq[int]) -> int:
    """Length of the longest common beginning of two sequences of one type: slices are compared, which costs C time."""
    low, high = 0, min(len(a), len(b))
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


RESTORE_GAIN = 64
"""Bring a stored prefix back, or store one, when it saves computing at least this many tokens: copying a
token's cells takes microseconds, computing it takes hundreds of them even on a large GPU."""


GAP_STEPS = 2
"""Steps that a gap between busy streams may last: who comes next may fill it, and to close it copies a stream."""


SHARE_GAIN = 64
"""Copy a prefix from stream to stream when it has at least so many tokens: the whole stream is copied."""


class PrefixStore:
    """Evicted sequences in RAM, as llama.cpp's state data; the least recently used go when ``limit`` bytes are full.

    No entry is the beginning of another. In lexical order, what has most in common with a sequence stands next to where
    that would stand: looking for it takes as long with thousands of entries as with ten.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: OrderedDict[tuple[int, ...], bytes] = OrderedDict()
        self._ordered: list[tuple[int, ...]] = []
        self.size = 0

    def _neighbours(self, key: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The entries before and after ``key`` in lexical order; ``key`` itself stands after. Empty: there is none."""
        at = bisect_left(self._ordered, key)
        return self._ordered[at - 1] if at else (), self._ordered[at] if at < len(self._ordered) else ()

    def wants(self, tokens: Seq[int]) -> bool:
        """Long enough to be worth it, and not the beginning of what is already there."""
        key = tuple(tokens)
        return len(key) >= RESTORE_GAIN and self._neighbours(key)[1][: len(key)] != key

    def put(self, tokens: Seq[int], state: bytes) -> None:
        """Keep what is wanted: nothing else may be put here (`wants`)."""
        if not state or len(state) > self._limit:
            return
        key = tuple(tokens)
        before, _ = self._neighbours(key)
        if before and key[: len(before)] == before:
            self._drop(before)  # the new one holds all of it
        self._entries[key] = state
        insort(self._ordered, key)
        self.size += len(state)
        while self.size > self._limit:
            self._drop(next(iter(self._entries)))

    def find(self, tokens: Seq[int], *, at_least: int, partial: bool) -> tuple[list[int], bytes] | None:
        """The entry that serves most of ``tokens``, if that is ``at_least`` so many. It leaves the store."""
        key = tuple(tokens)
        best, most = None, at_least - 1
        for entry in self._neighbours(key):
            n = min(common_prefix(entry, key), len(key) - 1)
            if n > most and (partial or n == len(entry)):
                best, most = entry, n
        if best is None:
            return None
        return list(best), self._drop(best)

    def _drop(self, entry: tuple[int, ...]) -> bytes:
        del self._ordered[bisect_left(self._ordered, entry)]
        state = self._entries.pop(entry)
        self.size -= len(state)
        return state


class Slot:
    """``tokens`` are in the KV cache at positions 0…; ``cells`` are their cells in our own count of the cache."""

    def __init__(self, seq_id: int) -> None:
        self.seq_id = seq_id
        self.tokens: list[int] = []
        self.cells: list[int] = []
        self.busy = False
        self.last_used = 0

    def __len__(self) -> int:
        return len(self.tokens)


class Slots:
    """All slots of one context and the one owner of its memory.

    llama.cpp does not tell how many cells are in use. We count with a twin: every computed token takes
    one cell number, shared prefixes hold the same numbers, and a cell is free when nobody holds it.
    ``partial``: memory can be cut at any position; else a slot is reused whole or not at all.
    """

    def __init__(self, memory: Memory, n_slots: int, *, partial: bool, store: PrefixStore | None = None) -> None:
        self._memory = memory
        self._store = store
        self._partial = partial
        self._slots = [Slot(i) for i in range(n_slots)]
        self._holders = np.zeros(memory.n_cells, dtype=np.int32)
        self._free = list(range(memory.n_cells - 1, -1, -1))
        self._clock = 0
        self._gap_steps = 0

    @property
    def n_free(self) -> int:
        """Cells that nobody holds."""
        return len(self._free)

    @property
    def n_used(self) -> int:
        return len(self._holders) - len(self._free)

    @property
    def n_available(self) -> int:
        """Cells that no busy slot holds: what eviction could make free."""
        held = np.zeros(len(self._holders), dtype=bool)
        for slot in self._slots:
            if slot.busy:
                held[slot.cells] = True
        return len(held) - int(held.sum())

    def reusable(self, slot: Slot, tokens: Seq[int]) -> int:
        """How many of ``tokens`` the slot's memory can serve. At least one token is left to compute, for its logits."""
        n = common_prefix(slot.tokens, tokens)
        if self._partial:
            n = min(n, len(tokens) - 1)
            return n if n == len(slot) or self._memory.whole_at(slot.seq_id, n) else 0
        return n if n == len(slot) < len(tokens) else 0

    @property
    def n_stored(self) -> int:
        """Bytes of evicted prefixes that wait in RAM."""
        return self._store.size if self._store else 0

    def claim(self, tokens: Seq[int], *, reuse: bool = True) -> tuple[Slot, int] | None:
        """A slot for a sequence that begins with ``tokens``, holding the longest prefix found anywhere, and its length.

        None when every slot is busy. A retained slot is taken over where most of it serves; else it is left
        as it is and its prefix is shared into another.
        """
        idle = [slot for slot in self._slots if not slot.busy]
        if not idle:
            return None
        best, n = None, 0
        if reuse:
            for slot in self._slots:
                found = self.reusable(slot, tokens)
                if found > n or (found == n > 0 and best is not None and best.busy and not slot.busy):
                    best, n = slot, found
        # A neighbour of busy streams; an empty slot, which costs nobody anything; the one that was used longest ago.
        others = sorted(
            (slot for slot in idle if slot is not best),
            key=lambda slot: (self._n_runs(slot), len(slot) > 0, slot.last_used),
        )
        if best is not None and not best.busy and (n * 2 >= len(best) or not others):
            target = best
            if not self.truncate(target, n):
                n = 0
            held = self._bring_back(target, tokens, n) if reuse else None
        else:
            target = others[0]
            self._empty(target)
            if self._memory.streams and n < SHARE_GAIN:
                n = 0
            held = self._bring_back(target, tokens, n) if reuse else None
            if held is None and best is not None:
                n = min(n, len(best))  # what was tried may have evicted it
                if n:
                    self._share(best, target, n)
        target.busy = True
        return target, n if held is None else held

    def gather(self) -> dict[Slot, Slot]:
        """Let busy streams be neighbours again, if they have not been for some steps. Where each that moved went to."""
        busy = [i for i, slot in enumerate(self._slots) if slot.busy]
        if not self._memory.streams or not busy or busy[-1] - busy[0] < len(busy):
            self._gap_steps = 0
            return {}
        self._gap_steps += 1
        if self._gap_steps <= GAP_STEPS:
            return {}
        n = len(busy)
        windows = [self._slots[i : i + n] for i in range(len(self._slots) - n + 1)]
        # Where the fewest have to move, and the least that is retained has to go.
        window = max(windows, key=lambda it: (sum(s.busy for s in it), -sum(len(s) for s in it if not s.busy)))
        holes = [slot for slot in window if not slot.busy]
        outside = [slot for slot in self._slots if slot.busy and slot not in window]
        moved = dict(zip(outside, holes, strict=True))
        for source, target in moved.items():
            self._empty(target)
            if source.tokens:
                self._share(source, target, len(source))
            target.busy = True
            source.busy = False
            self.truncate(source, 0)
        return moved

    def _n_runs(self, claimed: Slot) -> int:
        """In how many runs of neighbours the busy slots were, with ``claimed`` among them. 1 in a pool: no matter."""
        if not self._memory.streams:
            return 1
        busy = [slot.busy or slot is claimed for slot in self._slots]
        return sum(now and not before for before, now in zip([False, *busy], busy, strict=False))

    def release(self, slot: Slot) -> None:
        """The owner is done; what the slot holds is retained."""
        slot.busy = False
        self._clock += 1
        slot.last_used = self._clock

    def append(self, slot: Slot, tokens: Seq[int]) -> None:
        """``tokens`` were computed in this slot, after what it holds. `n_free` must have been enough."""
        cells = [self._free.pop() for _ in tokens]
        self._holders[cells] = 1
        slot.tokens.extend(tokens)
        slot.cells.extend(cells)

    def truncate(self, slot: Slot, n: int) -> bool:
        """Keep the first ``n`` tokens. False where this memory cannot be cut there: the slot is then empty."""
        if n >= len(slot):
            return True
        done = self._memory.cut(slot.seq_id, n or -1)
        if not done:
            self._memory.cut(slot.seq_id, -1)
            n = 0
        gone = slot.cells[n:]
        del slot.tokens[n:], slot.cells[n:]
        self._holders[gone] -= 1
        self._free.extend(cell for cell in gone if self._holders[cell] == 0)
        return done

    def evict(self, n_free: int) -> bool:
        """Empty retained slots, least recently used first, until ``n_free`` cells are free. False: not reached."""
        idle = sorted((slot for slot in self._slots if not slot.busy and slot.tokens), key=lambda slot: slot.last_used)
        for slot in idle:
            if self.n_free >= n_free:
                break
            self._empty(slot)
        return self.n_free >= n_free

    def _empty(self, slot: Slot) -> None:
        """Evict what the slot retains, into the store where that is worth it."""
        if self._store is not None and self._store.wants(slot.tokens):
            self._store.put(slot.tokens, self._memory.save(slot.seq_id))
        self.truncate(slot, 0)

    def _bring_back(self, slot: Slot, tokens: Seq[int], n: int) -> int | None:
        """Fill ``slot`` from the store, where that serves many more than ``n`` tokens. How many it serves then.

        None: it does not; 0: it should have, and the slot is empty now.
        """
        if self._store is None or self._memory.is_copying(slot.seq_id):
            return None
        found = self._store.find(tokens, at_least=n + RESTORE_GAIN, partial=self._partial)
        if found is None:
            return None
        held, state = found
        self.truncate(slot, 0)
        slot.busy = True  # not to be evicted for its own sake
        if not self.evict(len(held)) or not self._memory.restore(slot.seq_id, state):
            self._memory.cut(slot.seq_id, -1)
            slot.busy = False
            return 0
        slot.busy = False
        self.append(slot, held)
        self.truncate(slot, self.reusable(slot, tokens))
        return len(slot)

    def _share(self, source: Slot, target: Slot, n: int) -> None:
        self._memory.share(source.seq_id, target.seq_id, n if n < len(source) else -1)
        if self._memory.streams:
            self.append(target, source.tokens[:n])
            return
        target.tokens = source.tokens[:n]
        target.cells = source.cells[:n]
        self._holders[target.cells] += 1
