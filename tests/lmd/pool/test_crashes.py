import pytest

from lmd.errors import InvalidRequest, Overloaded, WorkerDied
from lmd.pool.crashes import LONGEST_DELAY, REMEMBERED, STEADY, Crashes, delay
from tests.lmd.pool.rig import want

A = want("a")
ERROR = WorkerDied("killed")


def test_the_first_death_costs_nothing_and_the_delay_has_an_end():
    assert [delay(n) for n in range(5)] == [0, 0, 1, 2, 4]
    assert delay(10_000) == LONGEST_DELAY


def test_deaths_in_a_row_are_refused_until_their_time():
    crashes = Crashes()
    crashes.record("a", A, ERROR, now=0)
    crashes.check(A.key, now=0)
    crashes.record("a", A, ERROR, now=10)
    with pytest.raises(Overloaded, match="killed"):
        crashes.check(A.key, now=10.5)
    crashes.check(A.key, now=11)


def test_what_the_request_asked_wrongly_is_told_again_without_loading_and_is_no_death():
    crashes = Crashes()
    crashes.record("a", A, InvalidRequest("vocabularies differ", param="draft_model"), now=0)
    for now in (0, 1, STEADY - 1):
        with pytest.raises(InvalidRequest, match="vocabularies differ") as caught:
            crashes.check(A.key, now=now)
        assert caught.value.param == "draft_model"
    crashes.check(A.key, now=STEADY)  # the file may be another by now
    assert crashes.rows(now=1) == []


def test_a_death_after_a_steady_life_counts_as_the_first():
    crashes = Crashes()
    for now in range(3):
        crashes.record("a", A, ERROR, now=now)
    assert crashes.count(A.key) == 3
    crashes.record("a", A, ERROR, now=100, lived=STEADY)
    assert crashes.count(A.key) == 1


def test_what_is_old_is_forgotten():
    crashes = Crashes()
    for n in range(100):
        crashes.record(f"m{n}", want(f"m{n}"), ERROR, now=n)
    assert len(crashes.rows(now=100)) == 100
    assert crashes.rows(now=100 + REMEMBERED) == []
