import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd.engine.draw import Draw, pick, survivors

logit_lists = st.lists(st.floats(-30, 30, width=32) | st.just(float("-inf")), min_size=1, max_size=60).filter(
    lambda logits: max(logits) > float("-inf")
)


def softmax(logits, temperature=1.0):
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


@given(logits=logit_lists, top_p=st.floats(0, 0.999), min_p=st.floats(0, 1))
def test_the_survivors_are_those_of_the_definitions(logits, top_p, min_p):
    weights = np.exp(np.float32(logits) - np.float32(max(logits)))
    found = survivors(weights, top_p=top_p, min_p=min_p)
    kept = np.sort(weights[found].astype(np.float64))[::-1]
    total = weights.sum(dtype=np.float64)
    everything = np.sort(weights.astype(np.float64))[::-1]
    assert len(set(found)) == len(found) >= 1
    assert np.array_equal(kept, everything[: len(kept)]), "not the most probable ones"
    enough = kept.sum() >= top_p * total * (1 - 1e-6)
    next_is_too_small = len(kept) == len(everything) or everything[len(kept)] < min_p * (1 + 1e-6)
    assert enough or next_is_too_small
    assert len(kept) == 1 or kept[:-1].sum() < top_p * total * (1 + 1e-6), "one too many for top-p"
    assert len(kept) == 1 or kept[-1] >= min_p * (1 - 1e-6), "below min-p"


@given(logits=logit_lists, min_p=st.floats(0, 1))
def test_min_p_alone(logits, min_p):
    weights = np.exp(np.float32(logits) - np.float32(max(logits)))
    assert set(survivors(weights, top_p=1.0, min_p=min_p)) == set(np.flatnonzero(weights >= np.float32(min_p)))


@given(
    weights=st.lists(st.just(0.0) | st.floats(2**-20, 1, width=32), min_size=1, max_size=5000).filter(any),
    u=st.floats(0, 1, exclude_max=True),
)
def test_a_pick_lies_where_the_sum_passes_u_and_never_on_nothing(weights, u):
    array = np.float32(weights)
    index = pick(array, u)
    assert array[index] > 0
    ends = np.cumsum(array, dtype=np.float64) / array.sum(dtype=np.float64)
    assert ends[index] >= u - 1e-9
    assert ends[index] - array[index] / array.sum(dtype=np.float64) <= u + 1e-9


@pytest.mark.parametrize("n", [1, 7, 1023, 1024, 1025, 2048, 5000])
def test_every_token_can_be_picked_as_often_as_it_weighs(n):
    weights = np.float32(np.random.default_rng(n).random(n) + 0.01)
    picks = np.bincount([pick(weights, (i + 0.5) / 20_000) for i in range(20_000)], minlength=n)
    assert np.abs(picks - 20_000 * weights / weights.sum()).max() <= 1.01


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.8, 0.0), (1.0, 0.1), (0.9, 0.05)])
def test_draws_follow_the_distribution_that_the_parameters_mean(temperature, top_p, min_p):
    logits = np.float32([3.0, 1.0, float("-inf"), 2.5, -1.0, 0.0, 2.0])
    probabilities = softmax(logits)
    order = np.argsort(-probabilities)
    n = int(np.searchsorted(np.cumsum(probabilities[order]), top_p)) + 1 if top_p < 1 else len(order)
    kept = [i for i in order[:n] if probabilities[i] >= min_p * probabilities.max() and probabilities[i] > 0]
    expected = np.zeros(len(logits))
    expected[kept] = softmax(logits[kept], temperature)
    draw = Draw(7, temperature=temperature, top_p=top_p, min_p=min_p)
    n_draws = 20_000
    counts = np.bincount([draw.sample(logits) for _ in range(n_draws)], minlength=len(logits))
    # Six standard deviations: the seed is fixed, so this either always passes or never.
    assert np.all(np.abs(counts - n_draws * expected) <= 6 * np.sqrt(n_draws * expected * (1 - expected)) + 1e-9)


def test_a_seed_decides():
    logits = np.float32(np.random.default_rng(1).standard_normal(1000))
    first, second, other = (Draw(seed, temperature=1.0) for seed in (3, 3, 4))
    draws = [first.sample(logits) for _ in range(20)]
    assert draws == [second.sample(logits) for _ in range(20)]
    assert draws != [other.sample(logits) for _ in range(20)]
