"""Drawing the tokens of many sequences at once, in threads."""

from collections.abc import Sequence as Seq
from concurrent.futures import ThreadPoolExecutor

from lmd.engine.context import Context
from lmd.engine.sequence import Sequence

DRAW_THREADS = 8
DRAW_AHEAD_EFFORT = 500_000
"""Logits: drawing from fewer, all sequences together, takes no longer than waking threads for it."""


class Drawers:
    """Threads that draw what is drawn plainly: numpy lets go of the interpreter while it computes, and with a GPU the
    draws of many sequences from a large vocabulary would else take longer than the step."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._threads: ThreadPoolExecutor | None = None

    def draw(self, outputs: Seq[tuple[Sequence, int]]) -> None:
        """Set `Sequence.drawn` of those that can be drawn so, from the logits of their batch entry, where it pays."""
        plain = [
            (sequence, index)
            for sequence, index in outputs
            if sequence.sampler.is_plain and sequence.spec.guide is None and sequence.spec.logprobs is None
        ]
        n = min(len(plain), self._context.n_threads, DRAW_THREADS)
        effort = sum(sequence.sampler.effort for sequence, _ in plain) * self._context.n_vocab
        if n < 2 or effort < DRAW_AHEAD_EFFORT:
            return
        jobs = [(sequence, self._context.logits(index)) for sequence, index in plain]

        def draw(start: int) -> None:
            for sequence, logits in jobs[start::n]:
                sequence.drawn = sequence.sampler.sample_from(logits)

        if self._threads is None:
            self._threads = ThreadPoolExecutor(DRAW_THREADS, thread_name_prefix="draw")
        others = [self._threads.submit(draw, start) for start in range(1, n)]
        draw(0)
        for other in others:
            other.result()

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
