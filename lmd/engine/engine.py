"""The step loop: admit → plan → decode → sample → emit.

One thread owns an engine and calls `Engine.step` while `Engine.busy`. There is no prefill or decode phase: every
sequence has computed tokens catching up with its tokens, and a step computes one batch of what is pending.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Seq
from typing import Protocol

from lmd.engine.batch import Batch
from lmd.engine.context import Context, NoCells
from lmd.engine.drafting import Drafting
from lmd.engine.drawers import Drawers
from lmd.engine.llama import Model
from lmd.engine.rate import Rate
from lmd.engine.sampler import logprob, unpredicted
from lmd.engine.scheduler import Need, Share, plan, prompt_slice
from lmd.engine.sequence import Sequence, SequenceSpec
from lmd.engine.slots import PrefixStore, Slots, common_prefix
from lmd.errors import ContextLengthExceeded, InvalidRequest, LmdError
from lmd.generation import FinishReason, TokenLogprob, Usage

STREAM_GAP_SECONDS = 0.4
"""Parts of long prompts between two tokens of running streams should not take longer than this."""
SHORT_PROMPT = 48
"""Tokens. Longer prompts gain nothing from being computed together, and are answered sooner one by one."""
LEADER_GAIN = 64
"""Wait for another sequence's prefix when that saves computing at least this many tokens."""


Shares = list[tuple[Sequence, list[int]]]
"""Sequences, and which tokens to compute for each."""


class Sink(Protocol):
    """Where results go. Called from within `Engine.step`, `submit` and `cancel`."""

    def output(self, id: int, text: str, n_tokens: int, logprobs: list[TokenLogprob] | None) -> None: ...
    def prefilled(self, id: int, done: int, total: int, logprobs: list[TokenLogprob] | None = None) -> None: ...
    def finished(self, id: int, reason: FinishReason, usage: Usage, text: str, stop: str | None) -> None: ...
    def failed(self, id: int, error: LmdError) -> None: ...


class Engine:
    """Continuous batching of up to ``parallel`` sequences over one context; more wait in a FIFO queue."""

    def __init__(
        self,
        model: Model,
        context: Context,
        sink: Sink,
        *,
        context_length: int,
        parallel: int,
        n_batch: int,
        n_outputs_max: int,
        prompt_cache: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.vocab = model.vocab
        self.context_length = context_length
        self.parallel = parallel
        self._partial = not (model.is_recurrent or model.is_hybrid)
        store = PrefixStore(prompt_cache) if prompt_cache else None
        self.slots = Slots(context, context.n_seq_max, partial=self._partial, store=store)
        self._n_outputs_max = n_outputs_max
        self._context = context
        self._batch = Batch(n_batch)
        self._sink = sink
        self._clock = clock
        self._drafting = Drafting(clock)
        self._drawers = Drawers(context)
        self._queue: deque[Sequence] = deque()
        self._groups: deque[Shares] = deque()
        """What is planned and still to be computed."""
        self._running: list[Sequence] = []
        self._prompt_token_seconds = 0.0
        self.n_prompted = self.n_reused = 0
        """Tokens of all prompts that have begun, and those of them that were in the cache."""
        self.decode_rate = Rate()
        self.prompt_rate = Rate()

    # ── requests ──

    @property
    def busy(self) -> bool:
        return bool(self._running or self._queue)

    @property
    def n_running(self) -> int:
        return len(self._running)

    @property
    def n_queued(self) -> int:
        return len(self._queue)

    @property
    def n_cells_used(self) -> int:
        """KV cells that hold something, kept prefixes included."""
        return self.slots.n_used

    def encode(self, parts: Seq[tuple[str, bool] | list[int]], *, add_special: bool) -> list[int]:
        """Token ids of a prompt: (text, may hold control tokens) or ready ids; BOS first where the model wants it."""
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, list):
                self._check(part, "prompt")
                tokens += part
            else:
                tokens += self.vocab.tokenize(part[0], special=part[1])
        if add_special and self.vocab.add_bos and self.vocab.bos >= 0 and tokens[:1] != [self.vocab.bos]:
            tokens.insert(0, self.vocab.bos)
        return tokens

    def decode(self, tokens: Seq[int]) -> str:
        """The text of ``tokens``, control tokens written out."""
        self._check(tokens, "tokens")
        return b"".join(map(self.vocab.special_piece, tokens)).decode("utf-8", "replace")

    def _check(self, tokens: Iterable[int], param: str) -> None:
        wrong = next((token for token in tokens if not 0 <= token < self.vocab.n_tokens), None)
        if wrong is not None:
            raise InvalidRequest(f"Token {wrong} is not in this model's vocabulary.", param=param)

    def submit(self, spec: SequenceSpec) -> None:
        """Queue a sequence. Raises InvalidRequest or ContextLengthExceeded; then nothing was queued."""
        if not spec.tokens:
            raise InvalidRequest("The prompt is empty.", param="prompt")
        stops = (spec.params.context_overflow or "stop_at_limit") == "stop_at_limit" or spec.told_from is not None
        if len(spec.tokens) >= self.context_length and stops:
            raise ContextLengthExceeded(len(spec.tokens), self.context_length)
        self._check(spec.logit_bias, "logit_bias")
        sequence = Sequence(spec, self.vocab, self.context_length, self._clock())
        if sequence.n_left <= 0 and not sequence.telling:
            self._finish(sequence, FinishReason.LENGTH)
            return
        self._queue.append(sequence)

    def cancel(self, id: int) -> None:
        """End sequence ``id`` now; its slot is free for the next step. Unknown ids are ignored."""
        for sequence in (*self._running, *self._queue):
            if sequence.id == id:
                self._finish(sequence, FinishReason.CANCELLED)
                return

    # ── the step ──

    def step(self) -> None:
        """Compute one batch, or the next of what was planned together, and tell the sink what came of it."""
        if not self._groups:
            self._admit()
            self._gather()
            self._draft()
            self._groups.extend(self._grouped(self._make_room(self._plan())))
        if not self._groups:
            return
        shares = [(sequence, tokens) for sequence, tokens in self._groups.popleft() if sequence.slot is not None]
        if not shares:
            return
        entries, outputs = self._fill(shares)
        only_decoding = all(sequence.decoding for sequence, _ in shares)
        started = self._clock()
        try:
            self._context.decode(self._batch)
        except NoCells:
            self._give_way()
            return
        self._context.wait()  # a GPU computes on after decode: what is learnt here about costs must hold all of it
        now = self._clock()
        self._measure(shares, now - started)
        for (sequence, tokens), entry in zip(shares, entries, strict=True):
            assert sequence.slot is not None
            self.slots.append(sequence.slot, tokens)
            if not sequence.n_generated:
                told = self._tell(sequence, entry + len(tokens)) if sequence.telling else None
                self._sink.prefilled(sequence.id, sequence.n_computed, sequence.n_prompt, told)
        self._drawers.draw(outputs)
        for sequence, index in outputs:
            self._sample(sequence, index)
        if only_decoding:
            self._drafting.cost.add(self._batch.n, self._clock() - started)

    def _gather(self) -> None:
        moved = self.slots.gather()
        for sequence in self._running if moved else ():
            assert sequence.slot is not None
            sequence.slot = moved.get(sequence.slot, sequence.slot)

    def _grouped(self, shares: Shares) -> list[Shares]:
        """What to compute together: all; of streams, that which decodes, and then each prompt by itself.

        llama.cpp computes streams together as far as they are neighbours with equally many tokens. A prompt
        beside others of other lengths would be computed in pieces, some of them too small to be worth a pass over
        the weights; so would tokens that a grammar forced, which now wait for the next step.
        """
        if not self._context.streams:
            return [shares] if shares else []
        fewest = min((len(tokens) for sequence, tokens in shares if sequence.decoding), default=0)
        decoding, short, long = Shares(), dict[int, Shares](), list[Shares]()
        for sequence, tokens in shares:
            if sequence.decoding:  # a draft is verified at once or in vain
                decoding.append((sequence, tokens if sequence.draft else tokens[:fewest]))
            elif len(tokens) == fewest:
                decoding.append((sequence, tokens))
            elif len(tokens) <= SHORT_PROMPT:
                short.setdefault(len(tokens), []).append((sequence, tokens))
            else:
                long.append([(sequence, tokens)])
        for group in (decoding, *short.values()):
            group.sort(key=lambda share: share[0].slot.seq_id if share[0].slot is not None else 0)
        return [group for group in (decoding, *short.values(), *long) if group]

    def _admit(self) -> None:
        """Queued sequences get slots, in order, while there are sequences and cells for them."""
        for sequence in list(self._queue):
            if len(self._running) >= self.parallel:
                break
            if self._follows(sequence):
                continue
            busy = sum(len(other.tokens) - other.n_computed for other in self._running)
            if self._running and self.slots.n_available < len(sequence.tokens) + busy + len(self._running) + 1:
                break
            claimed = self.slots.claim(sequence.tokens, reuse=sequence.spec.cache_prompt)
            if claimed is None:
                break
            slot, n_reused = claimed
            self._queue.remove(sequence)
            sequence.slot = slot
            if not sequence.started:
                sequence.started = self._clock()
                sequence.n_cached = n_reused
                self.n_prompted += sequence.n_prompt
                self.n_reused += n_reused
                if n_reused:
                    self._sink.prefilled(sequence.id, n_reused, sequence.n_prompt)
            self._running.append(sequence)

    def _follows(self, sequence: Sequence) -> bool:
        """Whether to wait for a running sequence that is about to compute a prefix of this one."""
        leader = sequence.leader
        if leader is not None:
            if leader.finished is None and leader.slot is not None and leader.n_computed < sequence.leader_prefix:
                return True
            sequence.leader = None
            return False
        if not sequence.spec.cache_prompt:
            return False
        for other in self._running:
            if other.pending < LEADER_GAIN:
                continue
            prefix = min(common_prefix(other.tokens, sequence.tokens), len(sequence.tokens) - 1)
            if prefix - other.n_computed >= LEADER_GAIN:
                sequence.leader, sequence.leader_prefix = other, prefix
                return True
        return False

    def _draft(self) -> None:
        """Guess ahead, where rows of logits are left over: not while a prompt's tokens are told."""
        if self._partial and not any(sequence.telling for sequence in self._running):
            self._drafting.draft(self._running, self._n_outputs_max - len(self._running))

    def _plan(self) -> list[Share]:
        limits = self._limits()
        needs = [
            Need(i, limits.get(sequence, sequence.pending) + len(sequence.draft), sequence.decoding)
            for i, sequence in enumerate(self._running)
        ]
        streams = any(need.decoding for need in needs)
        limit = self._batch.capacity
        # Only a prompt longer than a batch is sliced: short ones that come together are cheapest computed together, and
        # slicing them cost a fifth of the throughput of 8 clients.
        long = any(
            not sequence.decoding and sequence.n_before_decoding - sequence.n_cached > limit
            for sequence in self._running
        )
        slice_ = prompt_slice(self._prompt_token_seconds, STREAM_GAP_SECONDS, limit) if streams and long else limit
        slack = limit // 4
        alone = self._context.streams and slice_ == limit and slack > SHORT_PROMPT  # which share batches
        return plan(needs, limit, slice_, slack if alone else 0)

    def _limits(self) -> dict[Sequence, int]:
        """How many tokens to compute now of sequences that must not go on as far as they could.

        Memory that cannot be cut is handed on as it is: who computes it stops where those who wait for it part from
        it. A prompt whose tokens are told needs a row of logits for each.
        """
        limits: dict[Sequence, int] = {}
        for sequence in () if self._partial else self._queue:
            leader = sequence.leader
            if leader is not None and leader.n_computed < sequence.leader_prefix:
                n = sequence.leader_prefix - leader.n_computed
                limits[leader] = min(n, limits.get(leader, n))
        room = self._n_outputs_max - len(self._running)
        for sequence in self._running:
            if sequence.telling:
                limits[sequence] = min(limits.get(sequence, sequence.pending), 1 + room)
                room -= limits[sequence] - 1
        return limits

    def _make_room(self, shares: list[Share]) -> Shares:
        """The tokens to compute for each sequence, once the cache has cells for them.

        Where even evicting all that is retained is not enough, drafts are dropped; then the youngest sequences go back
        to the queue (they compute anew later) until the others fit: they wait for cells instead of failing.
        """
        batch = [(self._running[share.key], share.n) for share in shares]
        if not self.slots.evict(sum(n for _, n in batch)):
            batch = [(sequence, n - len(sequence.draft)) for sequence, n in batch]
            for sequence, _ in batch:
                sequence.drop_draft(0)
            batch = [(sequence, n) for sequence, n in batch if n > 0]
        while batch and not self.slots.evict(sum(n for _, n in batch)):
            if len(self._running) == 1:
                batch = [(sequence, min(n, self.slots.n_free)) for sequence, n in batch if self.slots.n_free]
                break
            youngest = self._running[-1]
            self._suspend(youngest)
            batch = [(sequence, n) for sequence, n in batch if sequence is not youngest]
        taken = []
        for sequence, n in batch:
            sequence.drop_draft(max(0, n - sequence.pending))
            start = sequence.n_computed
            taken.append((sequence, sequence.tokens[start : start + n] + sequence.draft))
        return taken

    def _suspend(self, sequence: Sequence) -> None:
        """Back to the head of the queue without its cells: it will compute what it has so far anew."""
        assert sequence.slot is not None
        self._running.remove(sequence)
        sequence.drop_draft(0)
        self.slots.release(sequence.slot)
        self.slots.truncate(sequence.slot, 0)
        sequence.slot = None
        self._queue.appendleft(sequence)

    def _give_way(self) -> None:
        """llama.cpp found no cells although our count has them (some memories fragment): free some, or suspend."""
        for sequence in self._running:
            sequence.drop_draft(0)
        self._groups.clear()
        used = self.slots.n_used
        self.slots.evict(self._context.n_cells)
        if self.slots.n_used < used:
            return
        if len(self._running) > 1:
            self._suspend(self._running[-1])
            return
        for sequence in list(self._running):
            self._finish(sequence, FinishReason.CONTEXT)

    def _fill(self, shares: Shares) -> tuple[list[int], list[tuple[Sequence, int]]]:
        """Put the shares into the batch. Returns the first entry of each, and the sequences that can sample, with
        their first output entry: that after the last token of ours, then comes one after each drafted token."""
        self._batch.clear()
        entries, outputs = [], []
        for sequence, tokens in shares:
            assert sequence.slot is not None
            start, n_draft = sequence.n_computed, len(sequence.draft)
            whole = start + len(tokens) - n_draft == len(sequence.tokens)
            n_outputs = len(tokens) if sequence.telling else 1 + n_draft if whole else 0
            first = self._batch.add(tokens, start, sequence.slot.seq_id, n_outputs)
            entries.append(first)
            if whole:
                outputs.append((sequence, first + len(tokens) - n_draft - 1))
        return entries, outputs

    def _tell(self, sequence: Sequence, end: int) -> list[TokenLogprob]:
        """The prompt's tokens that the last step predicted; its share of the batch ended before entry ``end``."""
        tokens, computed, told = sequence.tokens, sequence.n_computed, []
        if sequence.n_told == sequence.spec.told_from:
            told.append(unpredicted(self.vocab, tokens[sequence.n_told]))
            sequence.n_told += 1
        for position in range(sequence.n_told, min(computed + 1, sequence.n_prompt)):
            logits = self._context.logits(end - 1 - (computed - position))
            told.append(logprob(self.vocab, logits, tokens[position], sequence.spec.logprobs or 0))
            sequence.n_told += 1
        return told

    def _sample(self, sequence: Sequence, index: int) -> None:
        """Draw the next token, and go on drawing as long as what is drawn is what was drafted."""
        if sequence.n_left <= 0:  # it was all about the prompt
            self._finish(sequence, FinishReason.LENGTH)
            return
        spec, draft = sequence.spec, sequence.draft
        before, kept = len(sequence.tokens), 0
        text, logprobs = "", None if spec.logprobs is None else list[TokenLogprob]()
        while True:
            piece, new = self._draw(sequence, index + kept, logprobs)
            text += piece
            agreed = common_prefix(new, draft[kept:])
            kept += agreed
            if sequence.finished is not None or agreed < len(new):
                break
        if draft:
            assert sequence.slot is not None
            self.slots.truncate(sequence.slot, before + kept)
        sequence.judge(before, kept)
        guide = spec.guide
        if guide is not None and guide.error:
            self._fail(sequence, InvalidRequest(f"The grammar cannot be followed any further: {guide.error}"))
            return
        self._sink.output(sequence.id, text, len(sequence.tokens) - before, logprobs)
        if sequence.finished is not None:
            self._finish(sequence, sequence.finished)
        elif len(sequence.tokens) >= self.context_length:
            sequence.make_room()
            assert sequence.slot is not None
            self.slots.truncate(sequence.slot, self.slots.reusable(sequence.slot, sequence.tokens))

    def _draw(self, sequence: Sequence, index: int, logprobs: list[TokenLogprob] | None) -> tuple[str, list[int]]:
        """Sample from batch entry ``index``. Returns the text that is certain now, and the new tokens: the
        sampled one and those that the constraint forces after it, which the next step computes in one batch."""
        spec, guide = sequence.spec, sequence.spec.guide
        raw = self._context.logits(index).copy() if logprobs is not None else None
        if guide is not None:
            guide.mask(self._context.logits(index))
        token, sequence.drawn = sequence.drawn, None
        if token is None:
            token = sequence.sampler.sample(self._context, index)
        if logprobs is not None and raw is not None:
            logprobs.append(logprob(self.vocab, raw, token, spec.logprobs or 0))
        now = self._clock()
        text, new = sequence.take(token, now), [token]
        if logprobs and sequence.finished is FinishReason.EOG:
            logprobs.pop()  # the end is no part of the text
        if guide is not None and sequence.finished is None:
            for forced in guide.accept(token, self.vocab.special_piece(token)):
                sequence.sampler.accept(forced)
                text += sequence.take(forced, now)
                new.append(forced)
                if sequence.finished is not None:
                    break
            if guide.done and sequence.finished is None:
                sequence.finished = FinishReason.EOG
            if guide.error:
                sequence.finished = FinishReason.CANCELLED
        return text, new

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._remove(sequence, reason)
        self._sink.finished(sequence.id, reason, sequence.usage(), sequence.rest(), sequence.stops.found)

    def _fail(self, sequence: Sequence, error: LmdError) -> None:
        self._remove(sequence, FinishReason.CANCELLED)
        self._sink.failed(sequence.id, error)

    def _remove(self, sequence: Sequence, reason: FinishReason) -> None:
        sequence.finished = reason
        if sequence in self._running:
            self._running.remove(sequence)
        elif sequence in self._queue:
            self._queue.remove(sequence)
        if sequence.slot is not None:
            self.slots.release(sequence.slot)
            sequence.slot = None
        if sequence.drafter is not None:
            sequence.drafter.forget(sequence.id)
        sequence.close()

    def _measure(self, shares: Shares, seconds: float) -> None:
        """Keep the rates; learn what a prompt token costs from steps that are mostly prompt."""
        prompt = sum(len(tokens) for sequence, tokens in shares if not sequence.decoding)
        decoded = sum(len(tokens) for sequence, tokens in shares if sequence.decoding)
        if decoded:
            self.decode_rate.add(decoded, seconds)
        if prompt:
            self.prompt_rate.add(prompt, seconds)
        if prompt >= 32 and prompt >= 4 * decoded:
            cost = seconds / prompt
            known = self._prompt_token_seconds
            self._prompt_token_seconds = cost if not known else 0.7 * known + 0.3 * cost

    def close(self) -> None:
        for sequence in (*self._running, *self._queue):
            sequence.close()
        self._drawers.close()
        self._batch.close()
