"""Which running sequences guess ahead in a step, and how far."""

from collections.abc import Callable
from collections.abc import Sequence as Seq

from lmd.engine.payoff import StepCost
from lmd.engine.sequence import Sequence
from lmd.engine.speculative import MAX_DRAFT, MODEL, Drafter, Guess, Wish


class Drafting:
    """Sets `Sequence.guess` and `Sequence.draft`, as far as that pays by the measured cost of steps and of drafts."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.cost = StepCost()
        self._draft_seconds = 0.0

    def draft(self, sequences: Seq[Sequence], rows: int) -> None:
        """Of ``sequences``, which all compute in this step, let those guess that have one new token to compute.

        ``rows``: how many tokens may be drafted in all; each takes a row of logits.
        """
        n_others = len(sequences) - 1
        wishes: dict[Drafter, list[tuple[Sequence, int]]] = {}
        for sequence in sequences:
            drafter = sequence.drafter
            if drafter is None or not sequence.decoding or sequence.pending != 1:
                continue
            most = int(min(sequence.room - 1, rows, MAX_DRAFT))
            if most <= 0:
                continue
            if drafter.costs:
                share = self._draft_seconds / self.cost.of(1)
                n = sequence.speculation.length(MODEL, most, self.cost, n_others, share)
                if n:
                    wishes.setdefault(drafter, []).append((sequence, n))
            else:
                guess = drafter.draft([Wish(sequence.id, sequence.tokens, most)])[sequence.id]
                n = sequence.speculation.length(guess.level, len(guess.tokens), self.cost, n_others)
                _propose(sequence, guess, n)
            rows -= n
            n_others += n
        for drafter, asked in wishes.items():
            started = self._clock()
            guesses = drafter.draft([Wish(sequence.id, sequence.tokens, n) for sequence, n in asked])
            n = max(len(guess.tokens) for guess in guesses.values())
            if n:
                self._draft_seconds += 0.2 * ((self._clock() - started) / n - self._draft_seconds)
            for sequence, _ in asked:
                guess = guesses[sequence.id]
                _propose(sequence, guess, len(guess.tokens))


def _propose(sequence: Sequence, guess: Guess, n: int) -> None:
    """Have the step verify the first ``n`` tokens of ``guess``, as far as the constraint allows them."""
    sequence.guess, sequence.draft = guess, guess.tokens[:n]
    guide = sequence.spec.guide
    if guide is not None and n:
        sequence.drop_draft(guide.check(sequence.draft))
