"""llama.cpp's own samplers, one after the other."""

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import llama_cpp.llama_cpp as _lib

from lmd.engine.context import Context
from lmd.engine.vocabulary import Vocab


class SamplerChain:
    """llama.cpp's sampler chain; what is added first is applied first."""

    def __init__(self, n_vocab: int) -> None:
        self._chain = _lib.llama_sampler_chain_init(_lib.llama_sampler_chain_default_params())
        self._n_vocab = n_vocab

    def _add(self, sampler: Any) -> None:
        _lib.llama_sampler_chain_add(self._chain, sampler)

    def logit_bias(self, biases: Mapping[int, float]) -> None:
        native = (_lib.llama_logit_bias * len(biases))()
        for entry, (token, bias) in zip(native, biases.items(), strict=True):
            entry.token, entry.bias = token, bias
        self._add(_lib.llama_sampler_init_logit_bias(self._n_vocab, len(biases), native))

    def penalties(self, window: int, *, repeat: float, frequency: float, presence: float) -> None:
        self._add(_lib.llama_sampler_init_penalties(self._n_vocab, window, repeat, frequency, presence))

    def top_k(self, k: int) -> None:
        self._add(_lib.llama_sampler_init_top_k(k))

    def top_p(self, p: float) -> None:
        self._add(_lib.llama_sampler_init_top_p(p, 1))

    def min_p(self, p: float) -> None:
        self._add(_lib.llama_sampler_init_min_p(p, 1))

    def dry(
        self, vocab: Vocab, multiplier: float, *, base: float, allowed: int, window: int, breakers: Sequence[str]
    ) -> None:
        encoded = (ctypes.c_char_p * len(breakers))(*(breaker.encode() for breaker in breakers))
        self._add(_lib.llama_sampler_init_dry(vocab.pointer, multiplier, base, allowed, window, encoded, len(breakers)))

    def top_n_sigma(self, n: float) -> None:
        self._add(_lib.llama_sampler_init_top_n_sigma(n))

    def typical(self, p: float) -> None:
        self._add(_lib.llama_sampler_init_typical(p, 1))

    def xtc(self, probability: float, threshold: float, seed: int) -> None:
        self._add(_lib.llama_sampler_init_xtc(probability, threshold, 1, seed))

    def mirostat(self, version: int, seed: int, tau: float, eta: float) -> None:
        if version == 1:
            self._add(_lib.llama_sampler_init_mirostat(self._n_vocab, seed, tau, eta, 100))
        else:
            self._add(_lib.llama_sampler_init_mirostat_v2(seed, tau, eta))

    def greedy(self) -> None:
        self._add(_lib.llama_sampler_init_greedy())

    def temperature(self, temperature: float, spread: float = 0.0, exponent: float = 1.0) -> None:
        self._add(_lib.llama_sampler_init_temp_ext(temperature, spread, exponent))

    def draw(self, seed: int) -> None:
        self._add(_lib.llama_sampler_init_dist(seed))

    def sample(self, context: Context, index: int) -> int:
        """Draw from batch entry ``index`` and accept the token."""
        return int(_lib.llama_sampler_sample(self._chain, context.pointer, index))

    def accept(self, token: int) -> None:
        _lib.llama_sampler_accept(self._chain, token)

    def close(self) -> None:
        if self._chain is not None:
            _lib.llama_sampler_free(self._chain)
            self._chain = None
