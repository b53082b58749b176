"""One request inside the engine: its tokens, where it is, and how its text comes out."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from lmd.engine.detokenizer import Detokenizer, StopStrings
from lmd.engine.grammar import Guide
from lmd.engine.payoff import Speculation
from lmd.engine.sampler import Sampler
from lmd.engine.slots import Slot
from lmd.engine.speculative import NONE, Drafter, Guess
from lmd.engine.vocabulary import Vocab
from lmd.generation import ContextOverflow, FinishReason, SamplingParams, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceSpec:
    """What to generate. ``tokens``: the whole prompt, BOS included, at least one."""

    id: int
    tokens: list[int]
    params: SamplingParams
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    ignore_eos: bool = False
    cache_prompt: bool = True
    told_from: int | None = None
    """The prompt's tokens from here on are told too, with their log-probabilities; None: none. Without `cache_prompt`:
    what is not computed has no logits."""
    preserved: frozenset[int] = frozenset()
    """Control tokens whose text is given when they are generated."""
    guide: Guide | None = None
    """The constraint, compiled; belongs to this sequence alone."""
    drafter: Drafter | None = None
    """Who guesses what comes next; None: nobody."""


def shortened(tokens: list[int], room: int, policy: ContextOverflow, *, bos: int) -> list[int]:
    """At most ``room`` of ``tokens``: their end, and with "truncate_middle" as much of their beginning.

    A BOS at the beginning stays there, without which many models write nonsense.
    """
    if len(tokens) <= room:
        return tokens
    head = room // 2 if policy == "truncate_middle" else int(tokens[0] == bos)
    return tokens[:head] + tokens[len(tokens) - (room - head) :]


class Sequence:
    """A running or queued request. ``tokens``: prompt and what was generated, computed or not."""

    def __init__(self, spec: SequenceSpec, vocab: Vocab, context_length: int, now: float) -> None:
        self.spec = spec
        self.id = spec.id
        self.context_length = context_length
        self.overflow: ContextOverflow = spec.params.context_overflow or "stop_at_limit"
        self.tokens = list(spec.tokens)
        if self.overflow != "stop_at_limit" and len(self.tokens) >= context_length:
            # To half of the context, so that there is room for an answer before it is cut again.
            self.tokens = shortened(self.tokens, context_length // 2, self.overflow, bos=vocab.bos)
        self.n_prompt = len(self.tokens)
        self.n_before_decoding = self.n_prompt
        """Once so many tokens are computed, what is pending was just generated."""
        self.n_told = self.n_prompt if spec.told_from is None else spec.told_from
        """Of the prompt's tokens, so many are told, or need not be."""
        self.n_generated = 0
        self.slot: Slot | None = None
        self.leader: Sequence | None = None
        """A running sequence that is computing ``leader_prefix`` tokens of ours: we wait for it."""
        self.leader_prefix = 0
        self.finished: FinishReason | None = None
        self.sampler = Sampler(
            vocab,
            spec.params,
            n_ctx=context_length,
            logit_bias=spec.logit_bias,
            banned=vocab.eog_tokens if spec.ignore_eos else (),
            history=self.tokens,
        )
        limit = spec.params.max_tokens
        self.n_left: float = math.inf if limit is None or limit < 0 else limit
        self._vocab = vocab
        self._detokenizer = Detokenizer()
        self.stops = StopStrings(spec.params.stop or ())
        self.drafter = spec.drafter
        self.guess: Guess = NONE
        """What may follow ``tokens``."""
        self.draft: list[int] = []
        """The beginning of ``guess`` that the next step is to verify."""
        self.speculation = Speculation()
        self.drawn: int | None = None
        """The next token, where it was drawn ahead of the others' in this step."""
        self.n_cached = 0
        self.arrived = now
        self.started = 0.0
        self.first_token = 0.0
        self.last_token = 0.0

    @property
    def n_computed(self) -> int:
        return len(self.slot) if self.slot else 0

    @property
    def pending(self) -> int:
        return len(self.tokens) - self.n_computed

    @property
    def decoding(self) -> bool:
        """The prompt is computed; what is pending was generated."""
        return self.n_computed >= self.n_before_decoding

    @property
    def telling(self) -> bool:
        """Tokens of the prompt are still to be told: every one that is computed needs its logits."""
        return self.n_told < self.n_prompt

    def take(self, token: int, now: float) -> str:
        """``token`` was generated: append it. Returns the text that is now certain; may set `finished`.

        An end-of-generation token counts as generated and gives no text.
        """
        if not self.first_token:
            self.first_token = now
        self.last_token = now
        self.tokens.append(token)
        self.n_generated += 1
        self.n_left -= 1
        if not self.spec.ignore_eos and self._vocab.is_eog(token):
            self.finished = FinishReason.EOG
            return ""
        piece = self._vocab.special_piece(token) if token in self.spec.preserved else self._vocab.piece(token)
        text = self.stops.feed(self._detokenizer.feed(piece))
        if self.stops.found is not None:
            self.finished = FinishReason.STOP
        elif self.n_left <= 0:
            self.finished = FinishReason.LENGTH
        elif len(self.tokens) >= self.context_length and self.overflow == "stop_at_limit":
            self.finished = FinishReason.CONTEXT
        return text

    @property
    def room(self) -> float:
        """How many tokens may still be generated before something ends or cuts the sequence."""
        return min(self.n_left, self.context_length - len(self.tokens))

    def make_room(self) -> None:
        """The context is full and the policy is to go on: forget half of it. What remains is computed anew.

        Cells could be moved instead of computed, but cells that another sequence shares must not move, and
        recurrent states cannot; a prompt token costs a fraction of a generated one.
        """
        self.tokens = shortened(self.tokens, self.context_length // 2, self.overflow, bos=self._vocab.bos)
        self.n_before_decoding = len(self.tokens)

    def drop_draft(self, keep: int) -> None:
        """Keep the first ``keep`` drafted tokens; the others will not be verified."""
        self.speculation.ignored_early(len(self.draft) - keep)
        del self.draft[keep:]

    def judge(self, start: int, kept: int) -> None:
        """The step brought the tokens from ``start`` on: the first ``kept`` of the draft were right."""
        self.speculation.verified(len(self.draft), kept, ended=self.finished is not None)
        if self.guess.tokens:
            self.speculation.learn(self.guess, self.tokens[start:])
        self.guess, self.draft = NONE, []

    def rest(self) -> str:
        """The text that was held back, once the sequence has ended."""
        if self.stops.found is not None:
            return ""
        return self.stops.feed(self._detokenizer.flush()) + self.stops.flush()

    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self.n_prompt,
            cached_tokens=self.n_cached,
            completion_tokens=self.n_generated,
            drafted_tokens=self.speculation.drafted,
            accepted_tokens=self.speculation.accepted,
            ignored_draft_tokens=self.speculation.ignored,
            queue_seconds=max(0.0, (self.started or self.last_token or self.arrived) - self.arrived),
            prompt_seconds=max(0.0, self.first_token - self.started) if self.first_token else 0.0,
            generation_seconds=max(0.0, self.last_token - self.first_token),
        )

    def close(self) -> None:
        self.sampler.close()
