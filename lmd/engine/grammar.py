"""Constrained decoding with llguidance: which tokens may come next, and which must.

One `Grammars` per model. Its tokenizer takes about a second for a vocabulary of 150,000 tokens, a large schema
hundreds of milliseconds, so both are made on a thread of their own while other sequences are computed. llguidance is
imported there too: 2 MiB and some tens of milliseconds that a worker without constraints saves, at its cold load.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lmd.engine.context import Logits
from lmd.engine.marked import resolve_markers
from lmd.engine.vocabulary import Vocab
from lmd.errors import InvalidRequest, LmdError

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

#: One fixed style, the one that models have seen most (Python's json.dumps). Where blanks are free, small models
#: fall into endless ones, and nothing is forced.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_TAIL_BYTES = 4096
"""How far back a trigger's text is looked for."""


@dataclass(frozen=True, slots=True)
class GrammarSource:
    """A constraint as it comes from outside; see `lmd.worker.messages.Constraint`."""

    kind: str
    source: str
    triggers: tuple[str, ...] = ()


@dataclass(slots=True)
class Guide:
    """The state of one sequence's constraint. Free while ``matcher`` waits for a trigger."""

    matcher: LLMatcher
    tokenizer: LLTokenizer
    n_vocab: int
    triggers: tuple[bytes, ...] = ()
    active: bool = False
    forced: bool = True
    """Tokens that the grammar leaves no choice about are appended without being sampled."""
    error: str | None = None
    """Set when the parser hit a limit of its own; the sequence cannot go on."""
    _tail: deque[tuple[int, bytes]] = field(default_factory=deque)
    _tail_bytes: bytes = b""

    def __post_init__(self) -> None:
        self.active = not self.triggers

    @property
    def done(self) -> bool:
        """Nothing but the end may follow."""
        return self.active and self.matcher.is_stopped()

    def mask(self, logits: Logits) -> None:
        """Make the tokens that may not come next impossible, in place."""
        if not self.active:
            return
        bits = np.frombuffer(self.matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little", count=self.n_vocab).view(bool)
        np.copyto(logits, -np.inf, where=~allowed)

    def accept(self, token: int, piece: bytes) -> list[int]:
        """``token`` (bytes ``piece``) was generated. Returns the tokens that must follow it."""
        if self.active:
            if not self.matcher.consume_token(token):
                self.error = self.matcher.get_error().strip() or "the parser refused a token"
                return []
        elif not self._triggered(token, piece):
            return []
        return self._follow()

    def check(self, tokens: list[int]) -> int:
        """How many of ``tokens``, drafted to follow, the constraint allows. Changes nothing."""
        return self.matcher.validate_tokens(tokens) if self.active and tokens else len(tokens)

    def _follow(self) -> list[int]:
        if not self.forced or self.matcher.is_stopped():
            return []
        tokens: list[int] = self.matcher.compute_ff_tokens()
        if tokens and not self.matcher.consume_tokens(tokens):
            self.error = self.matcher.get_error().strip() or "the parser refused what it forced"
            return []
        return tokens

    def _triggered(self, token: int, piece: bytes) -> bool:
        """Look for a trigger that ends in ``piece``; then apply the constraint from the trigger's start."""
        self._tail.append((token, piece))
        self._tail_bytes += piece
        fresh = max(0, len(self._tail_bytes) - len(piece) - max(map(len, self.triggers)) + 1)
        hits = [at for trigger in self.triggers if (at := self._tail_bytes.find(trigger, fresh)) >= 0]
        if not hits:
            while len(self._tail_bytes) > _TAIL_BYTES:
                _, old = self._tail.popleft()
                self._tail_bytes = self._tail_bytes[len(old) :]
            return False
        tokens = self._tokens_from(min(hits))
        self._tail.clear()
        self._tail_bytes = b""
        if not self.matcher.consume_tokens(tokens):
            # What followed the trigger within its last token is no beginning of a call: it stays text.
            self.matcher.reset()
            return False
        self.active = True
        return True

    def _tokens_from(self, start: int) -> list[int]:
        """The generated tokens from byte ``start`` of the tail; cut anew where that is in the middle of one."""
        at = 0
        for i, (_, piece) in enumerate(self._tail):
            if at == start:
                return [token for token, _ in list(self._tail)[i:]]
            at += len(piece)
        return list(self.tokenizer.tokenize_bytes(self._tail_bytes[start:], parse_special=True))


class Grammars:
    """Compiles constraints for one vocabulary, on one thread."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._tokenizer: LLTokenizer | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def compile(self, source: GrammarSource, done: Callable[[Guide | LmdError], None]) -> Future[Any]:
        """Compile on the grammar thread, then call ``done`` there. InvalidRequest: the grammar is no good."""

        def work() -> None:
            try:
                done(self._compile(source))
            except LmdError as exc:
                done(exc)

        return self._thread.submit(work)

    def _compile(self, source: GrammarSource) -> Guide:
        from llguidance import LLMatcher
        from llguidance.gbnf_to_lark import any_to_lark
        from llguidance.llamacpp import lltokenizer_from_vocab

        if self._tokenizer is None:
            self._tokenizer = lltokenizer_from_vocab(self._vocab.pointer, eos_token=list(self._vocab.eog_tokens))
        try:
            match source.kind:
                case "json_schema":
                    grammar = LLMatcher.grammar_from_json_schema(source.source, defaults=JSON_STYLE)
                case "regex":
                    grammar = LLMatcher.grammar_from_regex(source.source)
                case "gbnf":
                    grammar = LLMatcher.grammar_from_lark(any_to_lark(source.source))
                case "lark":
                    grammar = LLMatcher.grammar_from_lark(resolve_markers(source.source, self._control_token))
                case other:
                    raise InvalidRequest(f"There is no constraint of kind '{other}'.", param="response_format")
        except LmdError:
            raise
        except Exception as exc:  # llguidance's converters raise bare Exception
            raise InvalidRequest(f"The {source.kind} cannot be read: {exc}", param="response_format") from exc
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().strip()
            raise InvalidRequest(f"The {source.kind} cannot be enforced: {reason}", param="response_format")
        return Guide(
            matcher,
            self._tokenizer,
            self._vocab.n_tokens,
            triggers=tuple(trigger.encode() for trigger in source.triggers),
        )

    def _control_token(self, text: str) -> int | None:
        """The token that is ``text``, where llguidance takes it for a token and not for characters."""
        assert self._tokenizer is not None
        ids = self._vocab.tokenize(text, special=True)
        return ids[0] if len(ids) == 1 and self._tokenizer.is_special_token(ids[0]) else None

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
