"""What drafts cost and bring: how many tokens guessed ahead are worth verifying."""

from bisect import bisect, insort
from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq

from lmd.engine.speculative import TOP, Guess


class StepCost:
    """What a step costs by its number of tokens, learnt from the steps that were taken.

    A table and not a line: on a CPU three tokens may cost twice as much as one, and sixteen twice as much as eight, or
    hardly more. Of each size it keeps the typical one of the last few times, and believes it from the third on: the
    first step of a size takes longer than later ones, and one now and then is interrupted and takes ten or a thousand
    times as long. What was measured is forgotten after a while, so that what was too dear is tried again.
    """

    _KEPT, _BELIEVED = 7, 3
    _REMEMBERED = 32
    """Steps for which a size is remembered that was measured once; each time more doubles them."""

    def __init__(self) -> None:
        self._steps = 0
        self._times: dict[int, deque[float]] = {}
        self._typical: dict[int, float] = {}
        self._until: dict[int, int] = {}
        self._sizes: list[int] = []

    def add(self, n_tokens: int, seconds: float) -> None:
        """A step of ``n_tokens`` took ``seconds``."""
        self._steps += 1
        times = self._times.setdefault(n_tokens, deque(maxlen=self._KEPT))
        times.append(seconds)
        self._until[n_tokens] = self._steps + self._REMEMBERED * 2 ** (len(times) - 1)
        if len(times) >= self._BELIEVED:
            self._typical[n_tokens] = sorted(times)[(len(times) - 1) // 2]
            if n_tokens not in self._sizes:
                insort(self._sizes, n_tokens)
        if self._steps % self._REMEMBERED == 0:
            self._forget()

    def _forget(self) -> None:
        for size in [size for size, until in self._until.items() if until < self._steps]:
            del self._times[size], self._until[size]
            self._typical.pop(size, None)
        self._sizes = sorted(self._typical)

    def of(self, n_tokens: int) -> float:
        """Expected seconds of a step; in arbitrary units while nothing is known."""
        known = self._typical.get(n_tokens)
        if known is not None:
            return known
        if not self._sizes:
            return _supposed(n_tokens)
        at = bisect(self._sizes, n_tokens)
        below, above = self._sizes[max(0, at - 1)], self._sizes[min(at, len(self._sizes) - 1)]
        if below < n_tokens < above:
            share = (n_tokens - below) / (above - below)
            return self._typical[below] + share * (self._typical[above] - self._typical[below])
        nearest = below if at else above
        return self._typical[nearest] * _supposed(n_tokens) / _supposed(nearest)


def _supposed(n_tokens: int) -> float:
    """A step's cost while nothing is known: low enough that drafts are tried."""
    return 1 + 0.25 * n_tokens


def draft_length(chances: Iterable[float], cost: StepCost, n_others: int, draft_share: float) -> int:
    """How many tokens to draft so that tokens per second are highest; 0: drafting does not pay.

    ``chances``: for each drafted token that it is right, if those before it were. ``n_others``: tokens of other
    sequences in the step. ``draft_share``: what drafting one token costs, as a part of a step of one token.
    """
    single = cost.of(n_others + 1)
    best, best_rate = 0, 1.0
    expected = chance = 1.0
    for k, right in enumerate(chances, 1):
        chance *= right
        if chance < 0.05:  # what is left to gain is less than a step's noise
            break
        expected += chance
        rate = expected * single / (cost.of(n_others + 1 + k) + k * draft_share * single)
        if rate > best_rate * 1.02:
            best, best_rate = k, rate
    return best


_SUPPOSED_RIGHT = (0.15, 0.4, 0.6, 0.7, 0.8, 0.85, 0.9)
"""By level: the chance that a guess is right, supposed until a sequence shows its own; as good as two guesses."""
_FORGETTING = 0.15
"""What the latest guess counts at least, against all before it: text changes."""


class Speculation:
    """One sequence's luck with guesses: how long the next draft should be, and the counts that usage tells.

    Luck is counted by a guess's level, and also of guesses that were not verified but seen to be right or wrong by what
    came: whether a draft would pay is known before any is paid for.
    """

    PROBE_EVERY = 48
    """Tokens after which a sequence whose drafts did not pay tries a short one again, where guesses are only made to
    be verified."""

    def __init__(self) -> None:
        self.drafted = self.accepted = self.ignored = 0
        self._right = list(_SUPPOSED_RIGHT)
        self._judged = [0] * (TOP + 1)
        self._idle = 0

    def length(self, level: int, most: int, cost: StepCost, n_others: int, draft_share: float = 0.0) -> int:
        """How many of up to ``most`` tokens guessed at ``level`` to verify; else as `draft_length`."""
        if most <= 0:
            return 0
        chances = (self._right[level:TOP] + [self._right[TOP]] * most)[:most]
        n = draft_length(chances, cost, n_others, draft_share)
        self._idle = 0 if n else self._idle + 1
        if draft_share and self._idle >= self.PROBE_EVERY:
            self._idle = 0
            return min(most, 2)
        return n

    def learn(self, guess: Guess, came: Seq[int]) -> None:
        """``came`` where ``guess`` was made, whatever of it was verified."""
        for level, (guessed, token) in enumerate(zip(guess.tokens, came, strict=False), guess.level):
            at = min(level, TOP)
            self._judged[at] += 1
            self._right[at] += max(_FORGETTING, 1 / (self._judged[at] + 2)) * ((guessed == token) - self._right[at])
            if guessed != token:
                return

    def verified(self, drafted: int, accepted: int, *, ended: bool) -> None:
        """``accepted`` of ``drafted`` were right. Where the sequence ``ended`` there, the others were never judged."""
        self.drafted += drafted
        self.accepted += accepted
        if ended:
            self.ignored += drafted - accepted

    def ignored_early(self, n: int) -> None:
        """``n`` drafted tokens were thrown away before they were verified."""
        self.drafted += max(0, n)
        self.ignored += max(0, n)
