"""Drawing a token by temperature, top-p and min-p alone, straight from the logits.

The same distribution as llama.cpp's chain (top-p, min-p, temperature, draw), which for each token copies the whole
vocabulary into structures and sorts them: with 150,000 tokens that takes longer than a small model's step on a GPU.
"""

import random
from typing import Final

import numpy as np
import numpy.typing as npt

from lmd.engine.context import Logits

Weights = npt.NDArray[np.float32]

_BLOCK: Final = 1024


class Draw:
    """Draws for one sequence. ``temperature`` above 0; ``top_p`` 1 and ``min_p`` 0 leave nothing out."""

    def __init__(self, seed: int, *, temperature: float, top_p: float = 1.0, min_p: float = 0.0) -> None:
        self._random = random.Random(seed)
        self._temperature, self._top_p, self._min_p = temperature, top_p, min_p

    def sample(self, logits: Logits) -> int:
        """A token. -inf logits are never drawn; at least one logit is finite."""
        peak = logits.max()
        if self._top_p >= 1 and self._min_p <= 0:
            return pick(np.exp((logits - peak) / np.float32(self._temperature)), self._random.random())
        kept = survivors(np.exp(logits - peak), top_p=self._top_p, min_p=self._min_p)
        weights = np.exp((logits[kept] - peak) / np.float32(self._temperature))
        return int(kept[pick(weights, self._random.random())])


def survivors(weights: Weights, *, top_p: float, min_p: float) -> npt.NDArray[np.intp]:
    """The tokens that top-p and then min-p leave over: the fewest most probable ones that make up ``top_p`` of the
    total, and of them those with at least ``min_p`` of the greatest weight, which is 1. Always one at least."""
    if top_p >= 1:
        return np.flatnonzero(weights >= np.float32(min(min_p, 1.0)))
    total = float(weights.sum(dtype=np.float64))
    target = top_p * total
    # All that weigh less than this are together less than 1 - top_p of the total: none of them is needed.
    least = max(min_p, (1 - top_p) * total / len(weights))
    kept = np.flatnonzero(weights >= np.float32(min(least, 1.0)))
    # Not sorted as a whole, which takes long where all are alike: the upper bits of a positive float order like itself,
    # so they make classes, and only the class in which the target is reached needs its order.
    chosen = weights[kept]
    classes = chosen.view(np.int32) >> 16
    masses = np.bincount(classes, weights=chosen)
    reached = np.cumsum(masses[::-1])[::-1]  # of a class and all that weigh more
    edge = max(0, int(np.searchsorted(-reached, -target, side="right")) - 1)
    sure, open_ = kept[classes > edge], kept[classes == edge]
    open_ = open_[np.argsort(-weights[open_], kind="stable")]
    before = float(reached[edge + 1]) if edge + 1 < len(reached) else 0.0
    n = int(np.searchsorted(np.cumsum(weights[open_], dtype=np.float64), target - before)) + 1
    return np.concatenate([sure, open_[:n]]) if reached[edge] >= target else kept


def pick(weights: Weights, u: float) -> int:
    """The index at ``u`` (0 ≤ u < 1) of the way through the weights. Never one whose weight is 0."""
    n = len(weights)
    whole = n - n % _BLOCK
    # Sums of blocks first: summing up 150,000 numbers one by one takes five times as long.
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    ends = np.cumsum(np.append(sums, weights[whole:].sum(dtype=np.float64)))
    target = u * float(ends[-1])
    block = min(int(np.searchsorted(ends, target, side="right")), len(ends) - 1)
    before = float(ends[block - 1]) if block else 0.0
    start = block * _BLOCK
    inner = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    index = start + int(np.searchsorted(inner, target - before, side="right"))
    if index < min(start + _BLOCK, n) and weights[index] > 0:
        return index
    # Rounding carried the target past the last weight of its block.
    return int(np.flatnonzero(weights[: start + _BLOCK])[-1])
