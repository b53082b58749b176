"""One sequence's sampler: a chain of llama.cpp's samplers, or plain argmax where nothing else is asked for."""

import secrets
from collections.abc import Mapping, Sequence

import numpy as np

from lmd.engine.llama import Context, Logits, SamplerChain, Vocab
from lmd.generation import SamplingParams, TokenLogprob

PENALTY_WINDOW = 64
"""Penalties look at this many last tokens, the prompt's included (as llama.cpp's tools do)."""
NEUTRAL_TEMPERATURE = 0.8


def seed_of(params: SamplingParams) -> int:
    """The 32-bit seed that ``params`` mean. llama.cpp takes 2**32 - 1 as "random", so it is never returned."""
    if params.seed is None or params.seed < 0:
        return secrets.randbelow(2**32 - 1)
    return params.seed % (2**32 - 1)


class Sampler:
    """Draws tokens for one sequence. Order: bias, penalties, top-k, top-p, min-p, temperature, draw.

    ``banned`` tokens are never drawn. ``history`` is the prompt: penalties count its tokens.
    """

    def __init__(
        self,
        vocab: Vocab,
        params: SamplingParams,
        *,
        logit_bias: Mapping[int, float],
        banned: Sequence[int] = (),
        history: Sequence[int] = (),
    ) -> None:
        temperature = NEUTRAL_TEMPERATURE if params.temperature is None else params.temperature
        repeat, presence, frequency = (
            params.repeat_penalty or 1.0,
            params.presence_penalty or 0.0,
            params.frequency_penalty or 0.0,
        )
        penalties = (repeat, presence, frequency) != (1.0, 0.0, 0.0)
        self._banned = np.array(sorted(banned), dtype=np.int64) if banned else None
        self._chain: SamplerChain | None = None
        if temperature == 0 and not penalties and not logit_bias:
            return
        chain = self._chain = SamplerChain(vocab.n_tokens)
        if logit_bias:
            chain.logit_bias(logit_bias)
        if penalties:
            chain.penalties(PENALTY_WINDOW, repeat=repeat, frequency=frequency, presence=presence)
        if temperature == 0:
            chain.greedy()
        else:
            if params.top_k is not None and params.top_k > 0:
                chain.top_k(params.top_k)
            if params.top_p is not None and params.top_p < 1:
                chain.top_p(params.top_p)
            if params.min_p:
                chain.min_p(params.min_p)
            chain.draw(temperature, seed_of(params))
        if penalties:
            for token in history[-PENALTY_WINDOW:]:
                self.accept(token)

    def sample(self, context: Context, index: int) -> int:
        """The next token, from the logits of batch entry ``index``; the chain takes it as accepted."""
        if self._chain is None:
            logits = context.logits(index)
            if self._banned is not None:
                logits[self._banned] = -np.inf
            return int(logits.argmax())
        if self._banned is not None:
            context.logits(index)[self._banned] = -np.inf
        return self._chain.sample(context, index)

    def accept(self, token: int) -> None:
        """Count a token that was not drawn here."""
        if self._chain is not None:
            self._chain.accept(token)

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()


def logprob(vocab: Vocab, logits: Logits, token: int, n_top: int) -> TokenLogprob:
    """``token``'s log-probability under the softmax over the whole vocabulary, before penalties and temperature.

    ``n_top`` alternatives, most probable first.
    """
    shifted = logits.astype(np.float64) - float(logits.max())
    normaliser = float(np.log(np.exp(shifted).sum()))
    top: tuple[tuple[int, bytes, float], ...] = ()
    if n_top:
        n_top = min(n_top, len(logits))
        best = np.argpartition(logits, -n_top)[-n_top:]
        best = best[np.argsort(-logits[best], kind="stable")]
        top = tuple((int(i), vocab.special_piece(int(i)), float(shifted[i]) - normaliser) for i in best)
    return TokenLogprob(token, vocab.special_piece(token), float(shifted[token]) - normaliser, top)
