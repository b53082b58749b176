"""Speculative decoding: cheap guesses at what comes next, verified by the model in the batch that it computes anyway.

Drafts are always the one token that the drafter finds most likely. For such a draft, "draw from the target and keep the
draft when it is the token drawn" is exactly rejection sampling (Leviathan et al. 2023, arXiv:2211.17192, with a
proposal that puts all its mass on one token): the text has the target's distribution, and with a given
seed even the same tokens as without drafts.
"""

from collections.abc import Sequence as Seq
from typing import NamedTuple, Protocol

import numpy as np

from lmd.engine.batch import Batch
from lmd.engine.context import Context, NoCells
from lmd.engine.llama import Model
from lmd.engine.slots import Slot, Slots, common_prefix
from lmd.errors import InvalidRequest

MAX_DRAFT = 16
"""Tokens drafted for one sequence in one step, at most."""
MIN_CONFIDENCE = 0.4
"""A draft model stops guessing below this probability of its own guess."""


class Wish(NamedTuple):
    """Draft up to ``limit`` tokens that may follow ``tokens`` of sequence ``key``."""

    key: int
    tokens: list[int]
    limit: int


class Drafter(Protocol):
    """Guesses for several sequences at once; one that has no good guess gets []."""

    costs: bool
    """Guessing takes time worth counting."""

    def draft(self, wishes: Seq[Wish]) -> dict[int, list[int]]: ...

    def forget(self, key: int) -> None:
        """Sequence ``key`` has ended."""


class PromptLookup:
    """Guesses that what followed these tokens the last time follows again: no second model.

    Looks for the longest of the last ``longest``…``shortest`` tokens earlier in the sequence. An index of n-grams
    grows with the sequence, so that a step costs the new tokens only.
    """

    costs = False

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        self._sizes = range(longest, shortest - 1, -1)
        self._seen: dict[int, int] = {}
        self._index: dict[int, dict[tuple[int, ...], int]] = {}

    def draft(self, wishes: Seq[Wish]) -> dict[int, list[int]]:
        return {wish.key: self._guess(wish) for wish in wishes}

    def forget(self, key: int) -> None:
        self._seen.pop(key, None)
        self._index.pop(key, None)

    def _guess(self, wish: Wish) -> list[int]:
        tokens, n = wish.tokens, len(wish.tokens)
        index = self._index.setdefault(wish.key, {})
        # Every n-gram that ends before the last token, with the place of what followed it.
        for end in range(max(1, self._seen.get(wish.key, 1)), n):
            for size in self._sizes:
                if end >= size:
                    index[tuple(tokens[end - size : end])] = end
        self._seen[wish.key] = n
        for size in self._sizes:
            if n >= size and (at := index.get(tuple(tokens[n - size :]))) is not None:
                guess = tokens[at : at + wish.limit]
                while guess and len(guess) < wish.limit:  # a repetition that reaches the end goes round
                    guess += tokens[at : at + wish.limit - len(guess)]
                return guess
        return []


class DraftModel:
    """Guesses with a small model of the same vocabulary, for all sequences in the same few decodes."""

    costs = True

    def __init__(self, model: Model, context: Context, n_batch: int) -> None:
        self._model, self._context = model, context
        self._batch = Batch(n_batch)
        self._slots = Slots(context, context.n_seq_max, partial=not (model.is_recurrent or model.is_hybrid))
        self._owned: dict[int, Slot] = {}

    def draft(self, wishes: Seq[Wish]) -> dict[int, list[int]]:
        guesses: dict[int, list[int]] = {wish.key: [] for wish in wishes}
        open_ = {wish.key: wish for wish in wishes if wish.limit > 0 and self._catch_up(wish)}
        while open_:
            self._batch.clear()
            entries = []
            for key, wish in open_.items():
                slot = self._owned[key]
                token = (wish.tokens + guesses[key])[len(slot)]
                entries.append((key, token, self._batch.add([token], len(slot), slot.seq_id, 1)))
            if not self._decode([(self._owned[key], [token]) for key, token, _ in entries]):
                break
            for key, _, index in entries:
                token, confidence = self._best(index)
                if confidence < MIN_CONFIDENCE:
                    del open_[key]
                    continue
                guesses[key].append(token)
                if len(guesses[key]) >= open_[key].limit:
                    del open_[key]
        return guesses

    def forget(self, key: int) -> None:
        slot = self._owned.pop(key, None)
        if slot is not None:
            self._slots.release(slot)

    def share_cores(self, n_busy: int) -> None:
        """As `lmd.engine.context.NativeContext.share_cores`."""
        self._context.share_cores(n_busy)

    def close(self) -> None:
        self._batch.close()
        self._context.close()
        self._model.close()

    def _catch_up(self, wish: Wish) -> bool:
        """Compute all of ``wish.tokens`` but the last in the draft's context. False: no room for this sequence."""
        slot = self._owned.get(wish.key)
        if slot is None:
            claimed = self._slots.claim(wish.tokens)
            if claimed is None:
                return False
            slot = self._owned[wish.key] = claimed[0]
        self._slots.truncate(slot, min(common_prefix(slot.tokens, wish.tokens), len(wish.tokens) - 1))
        while len(slot) < len(wish.tokens) - 1:
            start = len(slot)
            chunk = wish.tokens[start : min(start + self._batch.capacity, len(wish.tokens) - 1)]
            self._batch.clear()
            self._batch.add(chunk, start, slot.seq_id, 0)
            if not self._decode([(slot, chunk)]):
                return False
        return True

    def _decode(self, parts: Seq[tuple[Slot, list[int]]]) -> bool:
        if not self._slots.evict(sum(len(tokens) for _, tokens in parts)):
            return False
        try:
            self._context.decode(self._batch)
        except NoCells:
            return False
        for slot, tokens in parts:
            self._slots.append(slot, tokens)
        return True

    def _best(self, index: int) -> tuple[int, float]:
        """The most likely token and its probability."""
        logits = self._context.logits(index)
        token = int(logits.argmax())
        return token, float(1.0 / np.exp(logits - logits[token]).sum())


def check_vocabularies(target: Model, draft: Model) -> None:
    """Raises InvalidRequest unless a token of one model is the same token of the other."""
    a, b = target.vocab, draft.vocab
    reason = None
    if a.n_tokens != b.n_tokens:
        reason = f"{b.n_tokens} tokens instead of {a.n_tokens}"
    else:
        step = max(1, a.n_tokens // 4096)
        wrong = next((t for t in range(0, a.n_tokens, step) if a.text(t) != b.text(t)), None)
        if wrong is not None:
            reason = f"token {wrong} is {b.text(wrong)!r} instead of {a.text(wrong)!r}"
    if reason:
        raise InvalidRequest(
            f"The draft model's vocabulary does not match the model's: {reason}.",
            hint="Choose a draft model of the same family.",
            param="draft_model",
        )


class StepCost:
    """What a step costs by its number of tokens: seconds ≈ base + per_token × n.

    An exponentially weighted least-squares line, so that it follows the machine's load.
    """

    def __init__(self, memory: float = 0.98) -> None:
        self._memory = memory
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def add(self, n_tokens: int, seconds: float) -> None:
        k = self._memory
        self._n = self._n * k + 1
        self._x = self._x * k + n_tokens
        self._y = self._y * k + seconds
        self._xx = self._xx * k + n_tokens * n_tokens
        self._xy = self._xy * k + n_tokens * seconds

    def of(self, n_tokens: int) -> float:
        """Expected seconds; 1 + 0.25 a token in arbitrary units while nothing is known."""
        spread = self._n * self._xx - self._x * self._x
        if self._n < 4 or spread < 1e-6 * max(1.0, self._xx):
            return 1 + 0.25 * n_tokens
        slope = max(0.0, (self._n * self._xy - self._x * self._y) / spread)
        base = max(0.0, (self._y - slope * self._x) / self._n)
        return base + slope * n_tokens


def draft_length(acceptance: float, cost: StepCost, n_others: int, draft_share: float, limit: int) -> int:
    """How many tokens to draft so that tokens per second are highest; 0: drafting does not pay.

    ``acceptance``: the chance that a drafted token is kept. ``n_others``: tokens of other sequences in the step.
    ``draft_share``: what drafting one token costs, as a part of a step of one token.
    """
    p = min(max(acceptance, 0.0), 0.995)
    single = cost.of(n_others + 1)
    best, best_rate = 0, 1.0
    expected = 1.0
    for k in range(1, limit + 1):
        expected += p**k
        rate = expected * single / (cost.of(n_others + 1 + k) + k * draft_share * single)
        if rate > best_rate * 1.02:
            best, best_rate = k, rate
    return best


class Speculation:
    """One sequence's luck with drafts: how long the next should be, and the counts that usage tells."""

    PROBE_EVERY = 48
    """Tokens after which a sequence whose drafts did not pay tries a short one again."""

    def __init__(self) -> None:
        self.drafted = self.accepted = self.ignored = 0
        self._acceptance = 0.7
        self._idle = 0

    def limit(self, cost: StepCost, n_others: int, draft_share: float, most: int) -> int:
        n = draft_length(self._acceptance, cost, n_others, draft_share, min(most, MAX_DRAFT))
        if n == 0:
            self._idle += 1
            if self._idle >= self.PROBE_EVERY:
                self._idle = 0
                return min(most, 2)
        return n

    def verified(self, drafted: int, accepted: int, *, ended: bool) -> None:
        """``accepted`` of ``drafted`` were right. Where the sequence ``ended`` there, the others were never judged."""
        self.drafted += drafted
        self.accepted += accepted
        if ended:
            self.ignored += drafted - accepted
        for i in range(min(drafted, accepted if ended else accepted + 1)):
            self._acceptance += 0.1 * ((1.0 if i < accepted else 0.0) - self._acceptance)

    def ignored_early(self, n: int) -> None:
        """``n`` drafted tokens were thrown away before they were verified."""
        self.drafted += max(0, n)
        self.ignored += max(0, n)
