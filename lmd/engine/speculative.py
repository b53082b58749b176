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

LOOSE = 0
"""The level of a guess after a token that has not been seen there, by the token before it alone."""
MODEL = 4
"""The level of a draft model's first guess."""
TOP = 6
"""The highest level."""
_ANY = -1


class Wish(NamedTuple):
    """Draft up to ``limit`` tokens that may follow ``tokens`` of sequence ``key``."""

    key: int
    tokens: list[int]
    limit: int


class Guess(NamedTuple):
    """``tokens`` that may follow. ``level``: how good a reason there is for the first of them, `LOOSE` to `TOP`; each
    one that turns out right is a reason more for the next."""

    tokens: list[int]
    level: int


NONE = Guess([], LOOSE)


class Drafter(Protocol):
    """Guesses for several sequences at once; one that has no good guess gets an empty one."""

    costs: bool
    """Guessing takes time worth counting: ask for no more than will be verified."""

    def draft(self, wishes: Seq[Wish]) -> dict[int, Guess]: ...

    def forget(self, key: int) -> None:
        """Sequence ``key`` has ended."""


class PromptLookup:
    """Guesses that what followed these tokens the last time follows again: no second model.

    Looks for the longest of the last four tokens to one earlier in the sequence; the guess's level is the number of
    tokens that agree there. After a token that is new, it looks for the token before that: in counts, tables and lists
    of records new values stand between tokens that repeat. An index grows with the sequence, so that a step costs the
    new tokens only.
    """

    costs = False
    _SIZES = (4, 3, 2, 1)

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._index: dict[int, dict[tuple[int, ...], int]] = {}

    def draft(self, wishes: Seq[Wish]) -> dict[int, Guess]:
        return {wish.key: self._guess(wish) for wish in wishes}

    def forget(self, key: int) -> None:
        self._seen.pop(key, None)
        self._index.pop(key, None)

    def _guess(self, wish: Wish) -> Guess:
        tokens, n, limit = wish.tokens, len(wish.tokens), wish.limit
        at, level = self._find(self._grown(wish.key, tokens), tokens)
        if not at:
            return NONE
        guess = tokens[at : at + limit]
        while len(guess) < limit:  # a repetition that reaches the end goes round
            guess += tokens[at : at + limit - len(guess)]
        while LOOSE < level < min(TOP, at) and tokens[at - 1 - level] == tokens[n - 1 - level]:
            level += 1
        return Guess(guess, level)

    def _grown(self, key: int, tokens: list[int]) -> dict[tuple[int, ...], int]:
        """The index with every n-gram that ends before the last token, and the place of what followed it."""
        if self._seen.get(key, 0) > len(tokens):  # the context was full, and half of it was cut out
            self.forget(key)
        index = self._index.setdefault(key, {})
        for end in range(max(1, self._seen.get(key, 1)), len(tokens)):
            for size in self._SIZES:
                if end >= size:
                    index[tuple(tokens[end - size : end])] = end
            if end >= 2:
                index[tokens[end - 2], _ANY] = end
        self._seen[key] = len(tokens)
        return index

    def _find(self, index: dict[tuple[int, ...], int], tokens: list[int]) -> tuple[int, int]:
        """The place of what followed the last time, and how many tokens agree at least; (0, 0): nowhere."""
        n = len(tokens)
        for size in self._SIZES:
            if n >= size and (at := index.get(tuple(tokens[n - size :]))) is not None:
                return at, size
        return (index.get((tokens[-2], _ANY), 0) if n >= 2 else 0), LOOSE


class DraftModel:
    """Guesses with a small model of the same vocabulary, for all sequences in the same few decodes."""

    costs = True

    def __init__(self, model: Model, context: Context, n_batch: int) -> None:
        self._model, self._context = model, context
        self._batch = Batch(n_batch)
        self._slots = Slots(context, context.n_seq_max, partial=not (model.is_recurrent or model.is_hybrid))
        self._owned: dict[int, Slot] = {}

    def draft(self, wishes: Seq[Wish]) -> dict[int, Guess]:
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
        return {key: Guess(tokens, MODEL) for key, tokens in guesses.items()}

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
