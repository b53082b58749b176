"""A conversation with one model over the control socket."""

import math
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from lmctl.client import Client
from lmctl.completion import Called, Ended, Piece, Said, Thought, Usage, pieces


@dataclass(slots=True)
class Answer:
    """One answer, filled while it streams. Times are seconds since the question was sent."""

    text: str = ""
    reasoning: str = ""
    calls: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Tool calls by their number: name, and JSON text of the arguments."""
    finish_reason: str | None = None
    usage: Usage | None = None
    first: float | None = None
    last: float = 0.0

    def add(self, piece: Piece, now: float) -> None:
        match piece:
            case Said(text):
                self.text += text
                self._token(now)
            case Thought(text):
                self.reasoning += text
                self._token(now)
            case Called(index, name, arguments):
                before = self.calls.get(index, ("", ""))
                self.calls[index] = (before[0] + name, before[1] + arguments)
                self._token(now)
            case Ended(reason):
                self.finish_reason = reason
            case Usage():
                self.usage = piece

    def _token(self, now: float) -> None:
        self.first = now if self.first is None else self.first
        self.last = now

    @property
    def tokens_per_second(self) -> float | None:
        """From the first piece to the last; None where there are too few tokens to tell."""
        tokens = self.usage.completion_tokens if self.usage else 0
        spent = self.last - (self.first or 0.0)
        return (tokens - 1) / spent if tokens > 1 and spent > 0 else None


@dataclass(slots=True)
class Conversation:
    """What was said so far goes with each question."""

    client: Client
    model: str
    system: str | None = None
    ttl: float | None = None
    """For the load that a question starts. Seconds, infinity for never; None: the daemon's default."""
    said: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str, answer: Answer) -> Generator[Piece, None, None]:
        """The answer's pieces as they come; ``answer`` fills up beside.

        Closing the iterator, or an error, ends the request. What was answered till then joins the conversation,
        with the question; a question that got no answer at all is forgotten.
        """
        asked = {"role": "user", "content": question}
        start = time.monotonic()
        try:
            with closing(self.client.server_events("/v1/chat/completions", self._body(asked))) as events:
                for piece in pieces(events):
                    answer.add(piece, time.monotonic() - start)
                    yield piece
        finally:
            if answer.text:
                self.said += [asked, {"role": "assistant", "content": answer.text}]

    def _body(self, asked: dict[str, str]) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        body: dict[str, Any] = {
            "model": self.model,
            "messages": [*system, *self.said, asked],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ttl is not None:
            body["ttl"] = "never" if math.isinf(self.ttl) else self.ttl
        return body
