"""Drafts are as long as pays, by what steps cost and by how guesses turned out, whether they were verified or not."""

import pytest

from lmd.engine.payoff import Speculation, StepCost, draft_length
from lmd.engine.speculative import LOOSE, MODEL, TOP, Guess


def cost_of(seconds: dict[int, float]) -> StepCost:
    cost = StepCost()
    for _ in range(3):
        for n, s in seconds.items():
            cost.add(n, s)
    return cost


def test_drafts_are_long_where_extra_tokens_are_free_and_none_where_they_never_hit() -> None:
    cheap = cost_of({n: 0.030 + 0.0001 * n for n in (1, 2, 4, 8, 16)})
    dear = cost_of({n: 0.030 * n for n in (1, 2, 4, 8, 16)})
    assert draft_length([0.9] * 16, cheap, 0, 0.0) >= 8
    assert draft_length([0.1] * 16, cheap, 0, 0.3) == 0
    assert draft_length([0.5] * 16, dear, 0, 0.0) == 0


def test_a_draft_ends_before_the_token_that_is_never_right() -> None:
    cheap = cost_of({n: 0.030 + 0.003 * n for n in (1, 2, 4, 8, 16)})
    assert draft_length([1.0, 0.0, *[1.0] * 14], cheap, 0, 0.0) == 1


def test_long_drafts_may_pay_where_short_ones_do_not() -> None:
    cpu = cost_of({1: 0.030, 3: 0.090, 17: 0.260})
    assert draft_length([0.99] * 2, cpu, 0, 0.0) == 0
    assert draft_length([0.99] * 16, cpu, 0, 0.0) >= 12


def test_a_cost_is_that_of_the_typical_step_not_of_the_interrupted_one() -> None:
    cost = StepCost()
    for seconds in (0.5, 0.001, 0.001, 0.04, 0.001, 0.001, 0.5):
        cost.add(1, seconds)
    assert cost.of(1) == 0.001


def test_a_cost_lies_between_its_neighbours_and_is_supposed_beyond_them() -> None:
    cost = cost_of({1: 1.0, 5: 3.0})
    assert cost.of(3) == pytest.approx(2.0)
    assert cost.of(5) < cost.of(9) < 9.0
    assert StepCost().of(8) > StepCost().of(1) > 0


def test_one_slow_step_of_a_size_does_not_make_it_dear_and_three_do_for_a_while() -> None:
    cost = cost_of({1: 0.001})
    before = cost.of(2)
    cost.add(2, 0.5)
    assert cost.of(2) == before
    cost.add(2, 0.5)
    cost.add(2, 0.5)
    assert cost.of(2) == 0.5
    for _ in range(200):
        cost.add(1, 0.001)
    assert cost.of(2) == pytest.approx(before)


def test_guesses_that_come_true_lead_to_drafts_and_those_that_fail_end_them() -> None:
    cost = cost_of({n: 0.010 + 0.020 * n for n in (1, 3, 9, 17)})
    speculation = Speculation()
    assert speculation.length(2, 16, cost, 0) == 0
    for _ in range(12):
        speculation.learn(Guess([5] * 16, 2), [5])
        speculation.learn(Guess([5] * 16, TOP), [5])
    assert speculation.length(TOP, 16, cost, 0) > 4
    for _ in range(12):
        speculation.learn(Guess([5] * 16, TOP), [6])
    assert speculation.length(TOP, 16, cost, 0) == 0
    assert (speculation.drafted, speculation.accepted, speculation.ignored) == (0, 0, 0)


def test_a_guess_is_judged_as_far_as_it_was_right_and_one_token_on() -> None:
    speculation = Speculation()
    before = list(speculation._right)
    speculation.learn(Guess([1, 2, 3, 4], LOOSE), [1, 2, 9, 4])
    after = speculation._right
    assert [now > then for now, then in zip(after[:2], before, strict=False)] == [True, True]
    assert after[2] < before[2]
    assert after[3:] == before[3:]


def test_a_sequence_whose_dear_drafts_fail_stops_drafting_and_tries_again_later() -> None:
    cost = cost_of({n: 0.030 + 0.005 * n for n in (1, 2, 4, 8)})
    speculation = Speculation()
    assert speculation.length(MODEL, 16, cost, 0, 0.1) > 0
    for _ in range(60):
        speculation.learn(Guess([1, 1, 1, 1], MODEL), [2])
    lengths = [speculation.length(MODEL, 16, cost, 0, 0.1) for _ in range(Speculation.PROBE_EVERY)]
    assert set(lengths[:-1]) == {0}
    assert lengths[-1] > 0
