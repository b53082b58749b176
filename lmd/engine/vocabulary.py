"""A model's vocabulary, as llama.cpp has it."""

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as _lib
import numpy as np

from lmd.errors import InvalidRequest

_NAMED_ENDS = ("eos", "eot", "fim_pad", "fim_rep", "fim_sep")
"""What a model's metadata may name, whatever kind of token it is, and llama.cpp then ends a generation at."""


class Vocab:
    """Tokens to bytes and back."""

    def __init__(self, model: Any) -> None:
        self.pointer = _lib.llama_model_get_vocab(model)
        self.n_tokens: int = _lib.llama_vocab_n_tokens(self.pointer)
        self.bos: int = _lib.llama_vocab_bos(self.pointer)
        self.eos: int = _lib.llama_vocab_eos(self.pointer)
        self.add_bos: bool = _lib.llama_vocab_get_add_bos(self.pointer)
        self._pieces: dict[int, bytes] = {}
        self._eog: dict[int, bool] = {}

    @property
    def fim(self) -> tuple[int, int, int] | None:
        """The tokens before the prefix, before the suffix and before the middle; None: not trained to fill in."""
        tokens = tuple(getattr(_lib, f"llama_vocab_fim_{part}")(self.pointer) for part in ("pre", "suf", "mid"))
        return tokens if min(tokens) >= 0 else None

    def is_eog(self, token: int) -> bool:
        known = self._eog.get(token)
        if known is None:
            known = self._eog[token] = _lib.llama_vocab_is_eog(self.pointer, token)
        return known

    @functools.cached_property
    def eog_tokens(self) -> tuple[int, ...]:
        """Every token that ends a generation.

        llama.cpp makes control tokens of those that it knows by their text; the model's metadata may name others.
        """
        named = (getattr(_lib, f"llama_vocab_{name}")(self.pointer) for name in _NAMED_ENDS)
        return tuple(token for token in sorted({*self.control_ids, *named}) if token >= 0 and self.is_eog(token))

    def is_control(self, token: int) -> bool:
        return bool(_lib.llama_vocab_is_control(self.pointer, token))

    def text(self, token: int) -> str:
        """The token as the vocabulary writes it; "" for none (-1)."""
        return (_lib.llama_vocab_get_text(self.pointer, token) or b"").decode("utf-8", "replace") if token >= 0 else ""

    def piece(self, token: int) -> bytes:
        """The token's bytes in running text; empty for control tokens."""
        known = self._pieces.get(token)
        if known is None:
            known = self._pieces[token] = self._piece(token, special=False)
        return known

    def special_piece(self, token: int) -> bytes:
        """The token's bytes, the texts of control tokens included."""
        return self._piece(token, special=True)

    def _piece(self, token: int, *, special: bool) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            n: int = _lib.llama_token_to_piece(self.pointer, token, buffer, size, 0, special)
            if n >= 0:
                return buffer.raw[:n]
            size = -n

    def tokenize(self, text: str, *, special: bool) -> list[int]:
        """Token ids of ``text``, no BOS added. ``special``: texts of control tokens become those tokens."""
        data = text.encode("utf-8", "surrogatepass")
        size = max(16, len(data) // 2)
        while True:
            buffer = (ctypes.c_int32 * size)()
            n: int = _lib.llama_tokenize(self.pointer, data, len(data), buffer, size, False, special)
            if n >= 0:
                return buffer[:n]
            if n == -(2**31):
                raise InvalidRequest("The prompt is too long to tokenize.", param="messages")
            size = -n

    def control_texts(self) -> tuple[str, ...]:
        """Texts that `tokenize` with ``special`` takes for control tokens, in the order of their ids."""
        return tuple(map(self.text, self.control_ids))

    @functools.cached_property
    def control_ids(self) -> tuple[int, ...]:
        """Tokens that `tokenize` finds only with ``special``: control tokens and the unknown token.

        Asking for each of 152 k tokens takes a quarter of a second; llama.cpp writes a run of them with and without
        its control tokens in next to no time, and only runs where that differs are looked into.
        """
        ids = np.arange(self.n_tokens, dtype=np.int32)
        special = _lib.LLAMA_TOKEN_ATTR_CONTROL | _lib.LLAMA_TOKEN_ATTR_UNKNOWN
        found: list[int] = []

        def size(first: int, last: int, unparse: bool) -> int:
            run = ids[first:].ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
            n: int = _lib.llama_detokenize(self.pointer, run, last - first, None, 0, False, unparse)
            return n

        def search(first: int, last: int) -> None:
            if size(first, last, True) == size(first, last, False):
                return
            if last - first > 8:
                middle = (first + last) // 2
                search(first, middle)
                search(middle, last)
                return
            found.extend(
                token for token in range(first, last) if _lib.llama_vocab_get_attr(self.pointer, token) & special
            )

        for first in range(0, self.n_tokens, 512):
            search(first, min(first + 512, self.n_tokens))
        return tuple(found)

    def control_tokens(self, texts: Sequence[str]) -> frozenset[int]:
        """The tokens that each of ``texts`` is, where it is exactly one."""
        ids = (self.tokenize(text, special=True) for text in texts)
        return frozenset(found[0] for found in ids if len(found) == 1)
