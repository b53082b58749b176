"""The worker process: ``python -m lmd.worker.main FD``, one model, one thread.

It speaks `lmd.worker.messages` over the socket ``FD`` and nothing on stdout; stderr carries log lines that begin
with a syslog priority (``<4>…``). It ends when the daemon closes the socket or dies.
"""

import contextlib
import ctypes
import gc
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from lmd.engine.mapping import MappedModel
from lmd.errors import ContextLengthExceeded, LmdError
from lmd.generation import FinishReason, TokenLogprob, Usage
from lmd.worker.channel import Channel, ChannelClosed
from lmd.worker.messages import (
    Cancel,
    Detokenize,
    Embed,
    Embedded,
    EngineStats,
    Failed,
    Finished,
    FromWorker,
    Generate,
    Hello,
    Load,
    Loaded,
    LoadFailed,
    Output,
    Park,
    Parked,
    Prefilled,
    Progress,
    PromptText,
    PromptTokens,
    Rerank,
    ShareCores,
    Step,
    Text,
    Tokenize,
    Tokens,
    ToWorker,
)

if TYPE_CHECKING:
    from lmd.engine.embedding import EmbeddingInstance
    from lmd.engine.instance import EngineInstance
    from lmd.engine.llama import Model

STATS_SECONDS = 1.0
COMPILE_POLL_SECONDS = 0.002
"""How often an idle worker looks for constraints that its grammar thread has compiled."""


class Outbox:
    """The engine's sink: collects what a step has to tell and sends it as one frame, ends after it."""

    def __init__(self, channel: "Channel[ToWorker, FromWorker]") -> None:
        self._channel = channel
        self._outputs: list[Output] = []
        self._prefilled: list[Prefilled] = []
        self._finished: list[Finished | Embedded | Failed] = []

    def output(self, id: int, text: str, n_tokens: int, logprobs: list[TokenLogprob] | None) -> None:
        self._outputs.append(Output(id, text, n_tokens, logprobs))

    def prefilled(self, id: int, done: int, total: int, logprobs: list[TokenLogprob] | None = None) -> None:
        self._prefilled.append(Prefilled(id, done, total, logprobs))

    def finished(self, id: int, reason: FinishReason, usage: Usage, text: str, stop: str | None) -> None:
        self._finished.append(Finished(id, reason, usage, text, stop))

    def embedded(self, id: int, width: int, data: bytes, n_tokens: int) -> None:
        self._finished.append(Embedded(id, width, data, n_tokens))

    def failed(self, id: int, error: LmdError) -> None:
        sizes = (error.n_prompt, error.n_ctx) if isinstance(error, ContextLengthExceeded) else (0, 0)
        self._finished.append(Failed(id, error.code, error.message, error.hint, error.param, *sizes))

    def flush(self) -> bool:
        """Send what there is. True when a request ended."""
        if self._outputs or self._prefilled:
            self._channel.send(Step(self._outputs, self._prefilled))
            self._outputs, self._prefilled = [], []
        ended = bool(self._finished)
        for end in self._finished:
            self._channel.send(end)
        self._finished.clear()
        return ended


def prompt_parts(prompt: list[PromptText | PromptTokens]) -> list[tuple[str, bool] | list[int]]:
    return [(part.text, part.special) if isinstance(part, PromptText) else part.tokens for part in prompt]


class WorkerMain:
    """Waits for messages while idle; between steps takes what has arrived."""

    def __init__(self, channel: "Channel[ToWorker, FromWorker]") -> None:
        # Imported here and not above: a broken build then fails with a log line, not before the log is set up.
        from lmd.engine import bindings

        bindings.take_alone()
        from lmd.engine.llama import Backend

        self._channel = channel
        self._outbox = Outbox(channel)
        self._backend = Backend()
        self._parked: Model | None = None
        self._mapped: MappedModel | None = None
        """Of what is loaded or parked, where it can be parked."""
        self._stats_due = 0.0

    def run(self) -> int:
        """Serve until the daemon closes the socket, from one `Load` to the next. Returns the exit status."""
        self._channel.send(Hello(self._backend.facts()))
        import lmd.engine.embedding
        import lmd.engine.instance  # noqa: F401 -- now, with nobody waiting: 0.1 s of a cold load, for 2 MiB

        _give_back()
        while True:
            first = self._channel.poll(None)[0]
            if not isinstance(first, Load):
                raise TypeError(f"Load comes first, not {type(first).__name__}")
            try:
                self._instance = self._open(first)
            except LmdError as exc:
                self._channel.send(LoadFailed(exc.code, exc.message, exc.hint, exc.param))
                return 1
            self._channel.send(Loaded(self._instance.loaded))
            if self._instance.loaded.parks and self._mapped is None:
                self._mapped = MappedModel(first.path)
            self._serve(self._instance)
            self._park()
            self._channel.send(Parked())

    def _serve(self, instance: "EngineInstance | EmbeddingInstance") -> None:
        """Until the daemon says that it needs the memory for something else."""
        answered = False
        while True:
            busy = instance.engine.busy
            for message in self._channel.poll(0.0 if busy else COMPILE_POLL_SECONDS if instance.compiling else None):
                if isinstance(message, Park):
                    return
                self._take(message)
            instance.collect()
            instance.engine.step()
            changed = self._outbox.flush()
            self._tell_stats(changed or not busy)
            if busy and not answered and not instance.engine.busy:
                answered = True
                _give_back()  # what loading left: some MiB, and nobody waits now

    def _park(self) -> None:
        from lmd.engine.instance import EngineInstance

        if self._mapped is None or not isinstance(self._instance, EngineInstance):
            raise TypeError("this model cannot be parked")
        self._parked = self._instance.park()
        del self._instance
        _give_back()
        self._mapped.forget()

    def _unpark(self) -> "Model | None":
        """The model that is here already, if its file is still what it was."""
        model, self._parked = self._parked, None
        if model is None or self._mapped is None:
            return None
        if self._mapped.is_unchanged():
            self._mapped.populate()
            return model
        model.close()
        self._mapped = None
        return None

    def _open(self, load: Load) -> "EngineInstance | EmbeddingInstance":
        from lmd.engine.embedding import EmbeddingInstance
        from lmd.engine.instance import EngineInstance

        def on_progress(fraction: float) -> None:
            self._channel.send(Progress(fraction))

        backend, outbox, free = self._backend, self._outbox, load.free_memory
        if load.encodes:
            return EmbeddingInstance(backend, load.path, load.params, outbox, free_memory=free, on_progress=on_progress)
        return EngineInstance(
            backend,
            load.path,
            load.params,
            outbox,
            draft_path=load.draft_path,
            free_memory=free,
            free_vram=load.free_vram,
            prompt_cache=load.prompt_cache,
            kept=self._unpark(),
            on_progress=on_progress,
        )

    def _take(self, message: ToWorker) -> None:
        instance, engine = self._instance, self._instance.engine
        match message:
            case Cancel():
                instance.cancel(message.id)
            case ShareCores():
                instance.share_cores(message.n_busy)
            case Load() | Park():
                raise TypeError(f"{type(message).__name__} came in the middle of the work")
            case _:
                try:
                    match message:
                        case Generate():
                            instance.submit(message.id, prompt_parts(message.prompt), message)
                        case Embed():
                            instance.embed(message.id, prompt_parts(message.texts), message.dimensions)
                        case Rerank():
                            instance.rerank(message.id, message.query, message.documents)
                        case Tokenize():
                            tokens = engine.encode(prompt_parts(message.prompt), add_special=message.add_special)
                            pieces = list(map(engine.vocab.special_piece, tokens)) if message.pieces else None
                            self._channel.send(Tokens(message.id, tokens, pieces))
                        case Detokenize():
                            self._channel.send(Text(message.id, engine.decode(message.tokens)))
                except LmdError as exc:
                    self._outbox.failed(message.id, exc)

    def _tell_stats(self, now_please: bool) -> None:
        now = time.monotonic()
        if not now_please and now < self._stats_due:
            return
        self._stats_due = now + STATS_SECONDS
        engine = self._instance.engine
        self._channel.send(
            EngineStats(
                running=engine.n_running,
                queued=engine.n_queued,
                kv_used=engine.n_cells_used,
                decode_tps=engine.decode_rate.value,
                prompt_tps=engine.prompt_rate.value,
                prompt_tokens=engine.n_prompted,
                cached_tokens=engine.n_reused,
            )
        )


def _give_back() -> None:
    """Memory that nothing needs, to the kernel: some milliseconds."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def bind_to_parent() -> None:
    """Die with the daemon (prctl PR_SET_PDEATHSIG), leave Ctrl-C to it, and be the kernel's first choice when
    memory runs out: the daemon can start another worker, nobody can start another daemon as quickly."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)
    # Writing gigabytes of weights to a core file would keep a dead worker's requests waiting.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("500")


def is_closed(sock: socket.socket) -> bool:
    """Whether the other end is gone, asked without reading."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(0))


def main() -> int:
    bind_to_parent()
    sock = socket.socket(fileno=int(sys.argv[1]))
    if is_closed(sock):
        return 0  # the daemon died before we could ask to die with it
    channel: Channel[ToWorker, FromWorker] = Channel(sock, ToWorker)
    try:
        return WorkerMain(channel).run()
    except ChannelClosed:
        return 0


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    # Not sys.exit: freeing gigabytes page by page before the kernel does it at once only makes an unload slow.
    os._exit(status)
