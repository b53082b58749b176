"""An engine on the tiny model, driven step by step in the test's own process."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmd.engine.instance import EngineInstance
from lmd.engine.llama import Backend
from lmd.errors import LmdError
from lmd.generation import FinishReason, SamplingParams, TokenLogprob, Usage
from lmd.loading import LoadParams
from lmd.worker.messages import Generate, PromptText, PromptTokens

TINY = Path(__file__).parents[2] / "models" / "tiny-chat.gguf"


@dataclass
class Answer:
    text: str = ""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None
    usage: Usage = field(default_factory=Usage)
    stop: str | None = None
    error: LmdError | None = None
    progress: list[tuple[int, int]] = field(default_factory=list)
    prompt: list[TokenLogprob] = field(default_factory=list)


class Recorder:
    """A sink that keeps everything, and can act after each output (to cancel in mid-stream, say)."""

    def __init__(self) -> None:
        self.answers: dict[int, Answer] = {}
        self.order: list[int] = []
        self.on_output: Callable[[int], None] | None = None

    def of(self, id: int) -> Answer:
        return self.answers.setdefault(id, Answer())

    def output(self, id: int, text: str, n_tokens: int, logprobs: list[TokenLogprob] | None) -> None:
        answer = self.of(id)
        assert answer.reason is None
        answer.text += text
        answer.pieces.append(text)
        answer.logprobs += logprobs or []
        if self.on_output:
            self.on_output(id)

    def failed(self, id: int, error: LmdError) -> None:
        assert self.of(id).error is None
        self.of(id).error = error

    def prefilled(self, id: int, done: int, total: int, logprobs: list[TokenLogprob] | None = None) -> None:
        self.of(id).progress.append((done, total))
        self.of(id).prompt += logprobs or []

    def finished(self, id: int, reason: FinishReason, usage: Usage, text: str, stop: str | None) -> None:
        answer = self.of(id)
        assert answer.reason is None, "a sequence ended twice"
        answer.text += text
        answer.reason, answer.usage, answer.stop = reason, usage, stop
        self.order.append(id)


def chat(question: str, system: str = "") -> str:
    head = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    return f"{head}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"


class Driver:
    """An engine on the tiny model, or that at ``path``, driven by hand."""

    def __init__(
        self,
        backend: Backend,
        draft_path: str | None = None,
        prompt_cache: int = 0,
        path: Path = TINY,
        **params: Any,
    ) -> None:
        self.sink = Recorder()
        self.instance = EngineInstance(
            backend, str(path), LoadParams(**params), self.sink, draft_path=draft_path, prompt_cache=prompt_cache
        )
        self.engine = self.instance.engine
        self._next = 0

    def submit(self, prompt: str | list[int], *, raw: dict[str, Any] | None = None, **sampling: Any) -> int:
        self._next += 1
        part = PromptTokens(prompt) if isinstance(prompt, list) else PromptText(prompt)
        message = Generate(
            self._next, [part], SamplingParams(**{"temperature": 0.0, "max_tokens": 200, **sampling}), **(raw or {})
        )
        parts: list[Any] = [prompt if isinstance(prompt, list) else (prompt, True)]
        self.instance.submit(self._next, parts, message)
        return self._next

    def run(self, steps: int = 20_000) -> None:
        for _ in range(steps):
            while self.instance.compiling and not self.engine.busy:
                self.instance.collect()
            self.instance.collect()
            if not self.engine.busy:
                return
            self.engine.step()
        raise AssertionError(f"still busy after {steps} steps")

    def ask(self, prompt: str | list[int], **kwargs: Any) -> Answer:
        id = self.submit(prompt, **kwargs)
        self.run()
        return self.sink.of(id)

    def close(self) -> None:
        self.instance.close()
