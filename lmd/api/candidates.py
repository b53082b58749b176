"""``best_of``: more answers than are wanted, of which those that the model itself found likeliest are given."""

from collections.abc import Sequence
from dataclasses import replace

from lmd.generation import Echo, Finished, GenerationEvent, TextDelta


def likeliest(
    candidates: Sequence[Sequence[GenerationEvent]], n: int, *, keep_logprobs: bool
) -> list[TextDelta | Finished]:
    """The events of the ``n`` candidates with the highest mean log-probability of a token, as choices 0 to n-1.

    Each candidate is the whole of one choice's events, with logprobs. The tokens of those left out were generated all
    the same: the first choice's usage counts them.
    """
    ranked = sorted(candidates, key=_mean_logprob, reverse=True)
    left_out = sum(
        event.usage.completion_tokens for events in ranked[n:] for event in events if isinstance(event, Finished)
    )
    given: list[TextDelta | Finished] = []
    for choice, events in enumerate(ranked[:n]):
        for event in events:
            if isinstance(event, TextDelta):
                given.append(replace(event, choice=choice, logprobs=event.logprobs if keep_logprobs else ()))
            elif isinstance(event, Finished):
                extra = left_out if choice == 0 else 0
                usage = replace(event.usage, completion_tokens=event.usage.completion_tokens + extra)
                given.append(replace(event, choice=choice, usage=usage))
    return given


def _mean_logprob(events: Sequence[GenerationEvent]) -> float:
    values = [
        token.logprob or 0.0
        for event in events
        if isinstance(event, TextDelta) and not isinstance(event, Echo)
        for token in event.logprobs
    ]
    return sum(values) / len(values) if values else float("-inf")
