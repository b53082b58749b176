from hypothesis import given
from hypothesis import strategies as st

from lmd.pool.eviction import Order, Resident, Rules, plan
from lmd.pool.memory import Budget, Memory, Need, total

RULES = Rules()
LATE = 1000.0


def order(full, floor=None, **options):
    return Order(need=Need(Memory(full), Memory(full if floor is None else floor), full, 0, 0), **options)


def decide(wanted, residents, capacity=10, rules=RULES, now=LATE):
    free = Memory(capacity) - total(resident.memory for resident in residents)
    return plan(wanted, residents, Budget(free, Memory(capacity)), rules, now)


def test_a_load_that_fits_starts():
    assert decide(order(5), [Resident(id=1, memory=Memory(5))]).allowance == Memory(5)


def test_it_gets_its_full_size_if_idle_ones_can_make_room():
    plan = decide(order(8, floor=2), [Resident(id=1, memory=Memory(5))])
    assert plan.evict == (1,)
    assert plan.allowance is None


def test_it_gets_what_there_is_when_no_more_can_be_had():
    assert decide(order(8, floor=2), [Resident(id=1, memory=Memory(5), leases=1)]).allowance == Memory(5)


def test_what_is_ending_is_waited_for_and_nobody_else_leaves():
    plan = decide(order(6), [Resident(id=1, memory=Memory(6), ending=True), Resident(id=2, memory=Memory(3))])
    assert plan.evict == ()
    assert plan.blockers == (1,)


def test_one_within_its_residency_is_kept_for_a_moment():
    fresh = Resident(id=1, memory=Memory(6), ready_at=LATE - 1, used_at=LATE - 0.01)
    kept = decide(order(6), [fresh])
    assert kept.evict == ()
    assert kept.wake_at == fresh.used_at + RULES.linger
    assert decide(order(6), [fresh], now=kept.wake_at).evict == (1,)


def test_a_leased_one_is_closed_only_after_its_residency():
    fresh = Resident(id=1, memory=Memory(6), leases=1, ready_at=LATE - 1)
    plan = decide(order(6), [fresh])
    assert plan.closing == frozenset()
    assert plan.wake_at == fresh.ready_at + RULES.residency
    assert decide(order(6), [fresh], now=plan.wake_at).closing == {1}


def test_what_a_pinned_one_blocks_closes_nobody():
    plan = decide(order(6), [Resident(id=1, memory=Memory(6), pinned=True), Resident(id=2, memory=Memory(3), leases=1)])
    assert plan.closing == frozenset()
    assert plan.evict == ()


RESIDENTS = st.lists(
    st.builds(
        Resident,
        id=st.integers(1, 10**6),
        memory=st.builds(Memory, st.integers(1, 8), st.integers(0, 4)),
        leases=st.integers(0, 2),
        pinned=st.booleans(),
        jit=st.booleans(),
        loading=st.booleans(),
        ending=st.booleans(),
        ready_at=st.floats(LATE - 10, LATE),
        used_at=st.floats(LATE - 10, LATE),
    ),
    max_size=6,
    unique_by=lambda resident: resident.id,
)


@given(
    RESIDENTS,
    st.integers(1, 12),
    st.integers(0, 8),
    st.sampled_from([Rules(), Rules(eviction="last"), Rules(max_loaded=2)]),
)
def test_whatever_the_state_the_plan_keeps_the_rules(residents, full, cut, rules):
    wanted = order(full, floor=max(1, full - cut))
    capacity = Memory(12, 8)
    free = capacity - total(resident.memory for resident in residents)
    decided = plan(wanted, residents, Budget(free, capacity), rules, LATE)
    by_id = {resident.id: resident for resident in residents}
    for id in decided.evict:
        leaving = by_id[id]
        assert not leaving.leases
        assert not leaving.pinned
        assert not leaving.loading
        assert not leaving.ending
    for id in decided.closing:
        assert by_id[id].leases
        assert not by_id[id].pinned
    assert not decided.never
    if decided.allowance is not None:
        assert wanted.need.floor.fits(decided.allowance)
        assert decided.allowance.fits(free)
        staying = [resident for resident in residents if not resident.ending]
        assert not rules.max_loaded or len(staying) < rules.max_loaded
        assert not decided.evict
    if decided.wake_at is not None:
        assert decided.wake_at > LATE
    # Whoever waits waits for something: a lease, a load, a process that ends, a moment, or the operator.
    if decided.allowance is None:
        assert decided.blockers
    # One step of patience later an idle unpinned machine is free for the load.
    if all(not (r.leases or r.pinned or r.loading) for r in residents):
        later = plan(wanted, residents, Budget(free, capacity), rules, LATE + 10)
        assert later.allowance is not None or later.evict or any(r.ending for r in residents)
