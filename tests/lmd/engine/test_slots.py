import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lmd.engine.slots import GAP_STEPS, PrefixStore, Slot, Slots, common_prefix

N_CELLS = 60
N_SLOTS = 4
STREAM_CELLS = N_CELLS // N_SLOTS


class FakeMemory:
    """llama.cpp's cache as its header describes it: which sequences hold which token at which position.

    Of a pool, a cell is (content of the prefix up to there, who computed it): sharing adds holders to the same cell.
    Streams have cells of their own, so many each.
    """

    def __init__(self, n_cells: int, *, partial: bool = True, streams: bool = False) -> None:
        self.n_cells = n_cells
        self.partial = partial
        self.streams = streams
        self.sequences: dict[int, list[object]] = {}
        self.copying: list[tuple[int, int]] = []
        """Between streams, what is shared is copied by the next computation."""

    def decode(self) -> None:
        self.copying.clear()

    def is_copying(self, seq_id: int) -> bool:
        return any(seq_id in pair for pair in self.copying)

    def compute(self, seq_id: int, n: int) -> None:
        self.sequences.setdefault(seq_id, []).extend(object() for _ in range(n))
        assert self.used <= self.n_cells
        assert not self.streams or len(self.sequences[seq_id]) <= STREAM_CELLS

    @property
    def used(self) -> int:
        return len({cell for cells in self.sequences.values() for cell in cells})

    def cut(self, seq_id: int, start: int) -> bool:
        cells = self.sequences.get(seq_id, [])
        if start > 0 and start < len(cells) and not self.partial:
            return False
        del cells[max(start, 0) :]
        return True

    def whole_at(self, seq_id: int, n: int) -> bool:
        return True

    def save(self, seq_id: int) -> bytes:
        return len(self.sequences.get(seq_id, [])).to_bytes(2, "little") * 50

    def restore(self, seq_id: int, state: bytes) -> bool:
        assert not self.is_copying(seq_id), "the copy would come after it"
        self.compute(seq_id, int.from_bytes(state[:2], "little"))
        return True

    def share(self, source: int, target: int, n: int) -> None:
        cells = self.sequences.get(source, [])
        assert not self.sequences.get(target), "a target must be empty"
        if self.streams:
            self.copying.append((source, target))
        shared = list(cells if n < 0 else cells[:n])
        self.sequences[target] = [object() for _ in shared] if self.streams else shared


@given(st.lists(st.integers(0, 2), max_size=30), st.lists(st.integers(0, 2), max_size=30))
def test_common_prefix_equals_the_one_counted_by_hand(a: list[int], b: list[int]) -> None:
    n = 0
    while n < min(len(a), len(b)) and a[n] == b[n]:
        n += 1
    assert common_prefix(a, b) == n


class SlotsMachine(RuleBasedStateMachine):
    """Random claims, steps, releases and evictions: our count of cells always equals llama.cpp's."""

    partial = True
    stores = False
    streams = False

    def __init__(self) -> None:
        super().__init__()
        self.memory = FakeMemory(N_CELLS, partial=self.partial, streams=self.streams)
        store = PrefixStore(450) if self.stores else None
        self.slots = Slots(self.memory, N_SLOTS, partial=self.partial, store=store)
        self.running: list[tuple[Slot, list[int]]] = []

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=20), reuse=st.booleans())
    def claim(self, tokens: list[int], reuse: bool) -> None:
        if self.streams:
            tokens = tokens[: STREAM_CELLS - 1]
        claimed = self.slots.claim(tokens, reuse=reuse)
        assert (claimed is None) == (len(self.running) == N_SLOTS)
        if claimed is None:
            return
        slot, n = claimed
        assert n == len(slot) < len(tokens)
        assert slot.tokens == tokens[:n]
        assert reuse or n == 0
        assert all(slot is not other for other, _ in self.running)
        self.running.append((slot, tokens))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), n=st.integers(1, 6))
    def compute(self, data: st.DataObject, n: int) -> None:
        slot, tokens = data.draw(st.sampled_from(self.running))
        new = (tokens[len(slot) :] or [1])[:n]
        if self.streams:
            new = new[: STREAM_CELLS - len(slot)]
            assert self.slots.evict(len(new)), "each stream has cells of its own"
        if not self.slots.evict(len(new)):
            assert self.slots.n_available < len(new) + 0 or self.slots.n_free < len(new)
            return
        self.memory.decode()
        self.memory.compute(slot.seq_id, len(new))
        self.slots.append(slot, new)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.running))
        self.running.remove(pair)
        self.slots.release(pair[0])

    @precondition(lambda self: self.running)
    @rule(data=st.data(), n=st.integers(0, 10))
    def truncate(self, data: st.DataObject, n: int) -> None:
        slot, _ = data.draw(st.sampled_from(self.running))
        before = list(slot.tokens)
        kept = self.slots.truncate(slot, n)
        assert slot.tokens == (before[:n] if kept else [])

    @invariant()
    def counts_agree(self) -> None:
        assert self.slots.n_used == self.memory.used
        assert self.slots.n_free == N_CELLS - self.memory.used
        held = {cell for slot, _ in self.running for cell in self.memory.sequences.get(slot.seq_id, [])}
        assert self.slots.n_available == N_CELLS - len(held)

    @invariant()
    def busy_slots_keep_what_they_hold(self) -> None:
        for slot, _ in self.running:
            assert len(self.memory.sequences.get(slot.seq_id, [])) == len(slot)


class WholeSlotsMachine(SlotsMachine):
    """The same for memory that cannot be cut (recurrent and hybrid models)."""

    partial = False


class StoringSlotsMachine(SlotsMachine):
    """The same with a store that takes everything and has room for four entries."""

    stores = True

    @invariant()
    def the_store_stays_within_its_limit(self) -> None:
        assert 0 <= self.slots.n_stored <= 450


def n_runs(ids: set[int]) -> int:
    return sum(i - 1 not in ids for i in ids)


class StreamsMachine(StoringSlotsMachine):
    """The same where each slot has cells of its own."""

    streams = True

    @rule(tokens=st.lists(st.integers(0, 1), min_size=1, max_size=14))
    def claim_beside(self, tokens: list[int]) -> None:
        busy = {slot.seq_id for slot, _ in self.running}
        fewest = min((n_runs(busy | {i}) for i in range(N_SLOTS) if i not in busy), default=0)
        self.claim(tokens, reuse=False)
        assert len(busy) == N_SLOTS or n_runs({slot.seq_id for slot, _ in self.running}) == fewest

    @rule(steps=st.integers(1, GAP_STEPS + 1))
    def gather(self, steps: int) -> None:
        held = {id(tokens): list(slot.tokens) for slot, tokens in self.running}
        for _ in range(steps):
            moved = self.slots.gather()
            self.running = [(moved.get(slot, slot), tokens) for slot, tokens in self.running]
        assert {id(tokens): slot.tokens for slot, tokens in self.running} == held
        if steps > GAP_STEPS:
            assert n_runs({slot.seq_id for slot, _ in self.running}) <= 1
        assert sum(slot.busy for slot in self.slots._slots) == len(self.running)


@pytest.fixture(autouse=True)
def every_gain_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmd.engine.slots.RESTORE_GAIN", 2)
    monkeypatch.setattr("lmd.engine.slots.SHARE_GAIN", 2)


TestSlots = SlotsMachine.TestCase
TestStoringSlots = StoringSlotsMachine.TestCase
TestStoringSlots.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestSlots.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestStreams = StreamsMachine.TestCase
TestStreams.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWholeSlots = WholeSlotsMachine.TestCase
TestWholeSlots.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)


def computed(slots: Slots, memory: FakeMemory, tokens: list[int]) -> Slot:
    claimed = slots.claim(tokens)
    assert claimed is not None
    slot, n = claimed
    memory.decode()
    memory.compute(slot.seq_id, len(tokens) - n)
    slots.append(slot, tokens[n:])
    return slot


def test_the_next_turn_continues_in_its_own_slot() -> None:
    memory = FakeMemory(N_CELLS)
    slots = Slots(memory, N_SLOTS, partial=True)
    first = computed(slots, memory, list(range(10)))
    slots.release(first)
    again = slots.claim([*range(10), 77, 78])
    assert again == (first, 10)


def test_a_prefix_is_shared_with_a_sequence_that_still_runs() -> None:
    memory = FakeMemory(N_CELLS)
    slots = Slots(memory, N_SLOTS, partial=True)
    first = computed(slots, memory, list(range(20)))
    claimed = slots.claim([*range(15), 99])
    assert claimed is not None
    assert claimed[0] is not first
    assert claimed[1] == 15
    assert memory.used == 20


def test_a_prefix_is_copied_from_stream_to_stream() -> None:
    memory = FakeMemory(N_CELLS, streams=True)
    slots = Slots(memory, N_SLOTS, partial=True)
    first = computed(slots, memory, list(range(10)))
    claimed = slots.claim([*range(8), 99])
    assert claimed is not None
    assert claimed[0].tokens == list(range(8))
    assert claimed[1] == 8
    assert len(first) == 10
    assert memory.used == slots.n_used == 18


def test_a_stored_conversation_outlives_a_slot_that_is_just_being_copied() -> None:
    memory = FakeMemory(N_CELLS, streams=True)
    slots = Slots(memory, 2, partial=True, store=PrefixStore(10_000))
    for first in (0, 100, 200):
        slots.release(computed(slots, memory, list(range(first, first + 12))))
    assert slots.n_stored == 100
    assert slots.claim([*range(100, 104), 99]) is not None  # the last third of 100… is copied from
    claimed = slots.claim([*range(12), 99])
    assert claimed is not None
    assert claimed[1] == 0
    slots.release(claimed[0])
    memory.decode()
    assert slots.claim([*range(12), 99]) == (claimed[0], 12)


def test_a_gap_closes_where_nothing_is_retained() -> None:
    memory = FakeMemory(N_CELLS, streams=True)
    slots = Slots(memory, N_SLOTS, partial=True)
    running = [computed(slots, memory, [i] * 5) for i in range(3)]
    slots.release(running[1])
    for _ in range(GAP_STEPS):
        slots.gather()
    assert {source.seq_id: target.seq_id for source, target in slots.gather().items()} == {0: 3}


def test_a_gap_between_streams_closes_only_when_nobody_fills_it() -> None:
    memory = FakeMemory(N_CELLS, streams=True)
    slots = Slots(memory, N_SLOTS, partial=True)
    running = [computed(slots, memory, [i] * 5) for i in range(4)]
    assert [slot.seq_id for slot in running] == [0, 1, 2, 3]
    slots.release(running[1])
    assert [slots.gather() for _ in range(GAP_STEPS)] == [{}] * GAP_STEPS
    assert computed(slots, memory, [7] * 5) is running[1]
    assert slots.gather() == {}
    slots.release(running[1])
    assert [slots.gather() for _ in range(GAP_STEPS)] == [{}] * GAP_STEPS
    moved = slots.gather()
    assert {source.seq_id: target.seq_id for source, target in moved.items()} in ({0: 1}, {3: 1})
    assert slots.gather() == {}


def test_a_long_retained_conversation_is_not_cut_for_a_short_common_beginning() -> None:
    memory = FakeMemory(N_CELLS)
    slots = Slots(memory, N_SLOTS, partial=True)
    first = computed(slots, memory, list(range(30)))
    slots.release(first)
    claimed = slots.claim([*range(5), 99])
    assert claimed is not None
    assert claimed[0] is not first
    assert claimed[1] == 5
    assert len(first) == 30


def test_the_whole_prompt_in_cache_still_leaves_one_token_to_compute() -> None:
    memory = FakeMemory(N_CELLS)
    slots = Slots(memory, N_SLOTS, partial=True)
    slots.release(computed(slots, memory, list(range(8))))
    claimed = slots.claim(list(range(8)))
    assert claimed is not None
    assert claimed[1] == 7


def test_an_evicted_conversation_comes_back_from_the_store() -> None:
    memory = FakeMemory(N_CELLS)
    slots = Slots(memory, 1, partial=True, store=PrefixStore(10_000))
    slots.release(computed(slots, memory, list(range(30))))
    slots.release(computed(slots, memory, list(range(100, 130))))
    assert slots.n_stored == 100
    claimed = slots.claim([*range(20), 99, 98])
    assert claimed is not None
    assert claimed[1] == 20
    assert slots.n_stored == 100  # the other one went there in exchange


def test_the_store_forgets_what_was_used_longest_ago() -> None:
    store = PrefixStore(250)
    for start in (0, 100, 200):
        store.put(range(start, start + 10), bytes(100))
    assert store.size == 200
    assert store.find([0, 1, 2, 3, 4], at_least=2, partial=True) is None
    assert store.find([*range(100, 105)], at_least=2, partial=True) is not None
    assert store.find([*range(200, 205)], at_least=2, partial=False) is None
    assert store.find([*range(200, 215)], at_least=2, partial=False) is not None
    assert store.size == 0


KEYS = st.lists(st.integers(0, 2), min_size=2, max_size=7).map(tuple)


@given(st.lists(st.tuples(st.sampled_from(("keep", "find", "find whole")), KEYS), max_size=40), st.integers(1, 3))
def test_the_store_finds_what_a_look_at_every_entry_finds(
    steps: list[tuple[str, tuple[int, ...]]], at_least: int
) -> None:
    store = PrefixStore(600)
    kept: list[tuple[int, ...]] = []  # longest ago first
    for what, key in steps:
        if what == "keep":
            assert store.wants(key) is not any(entry[: len(key)] == key for entry in kept)
            if store.wants(key):
                store.put(key, bytes(100))
                kept = [*(entry for entry in kept if key[: len(entry)] != entry), key][-6:]
        else:
            partial = what == "find"
            served = {entry: min(common_prefix(entry, key), len(key) - 1) for entry in kept}
            fit = {entry: n for entry, n in served.items() if n >= at_least and (partial or n == len(entry))}
            found = store.find(key, at_least=at_least, partial=partial)
            assert (found is None) is not bool(fit)
            if found is not None:
                assert fit[tuple(found[0])] == max(fit.values())
                kept.remove(tuple(found[0]))
        assert store.size == 100 * len(kept)
