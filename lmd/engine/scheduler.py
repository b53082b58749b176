"""What one step computes: a pure decision over values."""

from collections.abc import Sequence
from typing import NamedTuple


class Need(NamedTuple):
    """What one running sequence still has to compute. ``decoding``: its prompt is done but for these last tokens."""

    key: int
    pending: int
    decoding: bool


class Share(NamedTuple):
    """Compute the next ``n`` pending tokens of sequence ``key``."""

    key: int
    n: int


def plan(needs: Sequence[Need], budget: int, prompt_budget: int, slack: int = 0) -> list[Share]:
    """Shares for one step of at most ``budget`` tokens, of which at most ``prompt_budget`` are prompt.

    ``needs`` come in order of arrival. Decoding sequences go first, so that a long prompt never stops a stream.
    Then prompts: those that fit into a quarter of what is left go before longer ones, so that a short question does
    not wait behind a long document; the oldest of the longer ones is still sure of a quarter in every step.
    ``slack``: a prompt longer than that is not cut for the sake of so few tokens, which then come on top, and none but
    the oldest of the longer ones is begun with fewer. Only where each prompt is a batch of its own: for these,
    crumbs are a pass over the weights each.
    """
    shares: list[Share] = []
    left = budget
    for need in needs:
        if need.decoding and left:
            n = min(need.pending, left)
            shares.append(Share(need.key, n))
            left -= n
    left = min(left, prompt_budget)
    quarter = left // 4
    prompts = [need for need in needs if not need.decoding]
    short = [need for need in prompts if need.pending <= quarter]
    long = [need for need in prompts if need.pending > quarter]
    kept = quarter if long else 0
    for need in (*short, *long):
        if need.pending > quarter:
            kept = 0
        n = min(need.pending, left - kept)
        if slack < need.pending <= min(n + slack, budget):
            n = need.pending if n > 0 else 0
        elif n < min(slack, need.pending) and need not in long[:1]:
            n = 0
        if n > 0:
            shares.append(Share(need.key, n))
            left -= n
    return shares


def prompt_slice(seconds_per_token: float, target_seconds: float, batch: int) -> int:
    """How many prompt tokens may ride beside running streams, so that a step takes about ``target_seconds``.

    ``seconds_per_token``: measured cost of a prompt token; 0: not measured yet. At least 64, so that
    matrix products stay efficient, at most ``batch``.
    """
    if seconds_per_token <= 0:
        return batch
    return max(min(64, batch), min(batch, int(target_seconds / seconds_per_token)))
