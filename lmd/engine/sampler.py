"""One sequence's sampler: argmax, a plain draw, or a chain of llama.cpp's samplers where more is asked for."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from lmd.engine.chain import SamplerChain
from lmd.engine.context import Context, Logits
from lmd.engine.draw import Draw
from lmd.engine.vocabulary import Vocab
from lmd.generation import SamplingParams, TokenLogprob

PENALTY_WINDOW = 64
"""Penalties look at this many last tokens, the prompt's included (as llama.cpp's tools do)."""
NEUTRAL_TEMPERATURE = 0.8
DRY_BREAKERS = ("\n", ":", '"', "*")


def seed_of(params: SamplingParams) -> int:
    """The 32-bit seed that ``params`` mean. llama.cpp takes 2**32 - 1 as "random", so it is never returned."""
    if params.seed is None or params.seed < 0:
        return int.from_bytes(os.urandom(8), "little") % (2**32 - 1)  # `secrets` would bring all of OpenSSL
    return params.seed % (2**32 - 1)


class Sampler:
    """Draws tokens for one sequence.

    Order: bias, penalties, DRY, top-nσ, top-k, typical, top-p, min-p, XTC, temperature, draw (llama-server's default).
    ``banned`` tokens are never drawn. ``history`` is the prompt: penalties and DRY count its tokens.
    ``n_ctx`` is what "the whole context" means for their windows.
    """

    def __init__(
        self,
        vocab: Vocab,
        params: SamplingParams,
        *,
        n_ctx: int,
        logit_bias: Mapping[int, float],
        banned: Sequence[int] = (),
        history: Sequence[int] = (),
    ) -> None:
        temperature = NEUTRAL_TEMPERATURE if params.temperature is None else params.temperature
        window = PENALTY_WINDOW if params.repeat_last_n is None else params.repeat_last_n
        window = n_ctx if window < 0 else window
        repeat, presence, frequency = (
            params.repeat_penalty or 1.0,
            params.presence_penalty or 0.0,
            params.frequency_penalty or 0.0,
        )
        penalties = window > 0 and (repeat, presence, frequency) != (1.0, 0.0, 0.0)
        self._banned = np.array(sorted(banned), dtype=np.int64) if banned else None
        self._chain: SamplerChain | None = None
        self._draw: Draw | None = None
        if temperature == 0 and not penalties and not logit_bias and not params.dry_multiplier:
            return
        if not penalties and not logit_bias and _is_plain(params):
            top_p, min_p = 1.0 if params.top_p is None else params.top_p, params.min_p or 0.0
            self._draw = Draw(seed_of(params), temperature=temperature, top_p=top_p, min_p=min_p)
            return
        chain = self._chain = SamplerChain(vocab.n_tokens)
        if logit_bias:
            chain.logit_bias(logit_bias)
        if penalties:
            chain.penalties(window, repeat=repeat, frequency=frequency, presence=presence)
        if params.dry_multiplier:
            _add_dry(chain, vocab, params, n_ctx)
        if temperature == 0:
            chain.greedy()
        else:
            _add_draw(chain, params, temperature)
        if penalties or params.dry_multiplier:
            for token in history if params.dry_multiplier else history[-window:]:
                self.accept(token)

    def sample(self, context: Context, index: int) -> int:
        """The next token, from the logits of batch entry ``index``; the chain takes it as accepted."""
        if self._chain is None:
            return self.sample_from(context.logits(index))
        if self._banned is not None:
            context.logits(index)[self._banned] = -np.inf
        return self._chain.sample(context, index)

    @property
    def is_plain(self) -> bool:
        """`sample_from` can draw, in any thread: it touches nothing but the logits and this sampler."""
        return self._chain is None

    @property
    def effort(self) -> float:
        """The time that a plain draw takes, for each logit, by that of a random one (argmax reads the logits once)."""
        return 1.0 if self._draw is not None else 1 / 16

    def sample_from(self, logits: Logits) -> int:
        """`sample`, of a plain sampler. ``logits`` may be changed."""
        if self._banned is not None:
            logits[self._banned] = -np.inf
        return self._draw.sample(logits) if self._draw is not None else int(logits.argmax())

    def accept(self, token: int) -> None:
        """Count a token that was not drawn here."""
        if self._chain is not None:
            self._chain.accept(token)

    def close(self) -> None:
        if self._chain is not None:
            self._chain.close()


def _is_plain(params: SamplingParams) -> bool:
    """Whether temperature, top-p and min-p are all that is asked for."""
    return not (
        (params.top_k is not None and params.top_k > 0)  # llama.cpp's top-k leaves little for the rest to do
        or (params.typical_p is not None and params.typical_p < 1)
        or params.mirostat
        or params.top_n_sigma
        or params.xtc_probability
        or params.dynatemp_range
        or params.dry_multiplier
    )


def _add_dry(chain: SamplerChain, vocab: Vocab, params: SamplingParams, n_ctx: int) -> None:
    window = params.dry_penalty_last_n
    chain.dry(
        vocab,
        params.dry_multiplier or 0.0,
        base=params.dry_base or 1.75,
        allowed=2 if params.dry_allowed_length is None else params.dry_allowed_length,
        window=n_ctx if window is None or window < 0 else window,
        breakers=DRY_BREAKERS if params.dry_sequence_breakers is None else params.dry_sequence_breakers,
    )


def _add_draw(chain: SamplerChain, params: SamplingParams, temperature: float) -> None:
    seed = seed_of(params)
    if params.mirostat:
        chain.temperature(temperature)
        chain.mirostat(params.mirostat, seed, params.mirostat_tau or 5.0, params.mirostat_eta or 0.1)
        return
    if params.top_n_sigma:
        chain.top_n_sigma(params.top_n_sigma)
    if params.top_k is not None and params.top_k > 0:
        chain.top_k(params.top_k)
    if params.typical_p is not None and params.typical_p < 1:
        chain.typical(params.typical_p)
    if params.top_p is not None and params.top_p < 1:
        chain.top_p(params.top_p)
    if params.min_p:
        chain.min_p(params.min_p)
    if params.xtc_probability:
        chain.xtc(params.xtc_probability, 0.1 if params.xtc_threshold is None else params.xtc_threshold, seed)
    chain.temperature(temperature, params.dynatemp_range or 0.0, params.dynatemp_exponent or 1.0)
    chain.draw(seed)


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


def unpredicted(vocab: Vocab, token: int) -> TokenLogprob:
    """The first token of a prompt: it has no probability."""
    return TokenLogprob(token, vocab.special_piece(token), None)
