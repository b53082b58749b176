"""Two fakes of a worker.

`FakeWorker` stands in for `WorkerProcess`: no process, and everything happens when the test says so.
``python -m lmd.worker.fake FD`` is a real child that speaks the protocol and does on command what a
real engine only does on a bad day: hang, die, lie.

The child's commands are the load's path (``/fake/hang``, ``/fake/die``, …) and the prompt's first word:
see `_load` and `_generate`. Every other prompt is answered with its own words, one a step.
"""

import asyncio
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count

from lmd.errors import LmdError, LoadFailed, Unloaded, WorkerDied
from lmd.generation import FinishReason, Usage
from lmd.loading import LoadedModel, LoadParams, WorkerFacts
from lmd.worker.channel import Channel, ChannelClosed
from lmd.worker.mailbox import Mailbox
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
from lmd.worker.messages import LoadFailed as LoadFailedMessage

GIB = 2**30


def fake_facts(pid: int = 1) -> WorkerFacts:
    return WorkerFacts(pid=pid, llama_cpp_python="fake", llama_cpp="fake", system_info="fake")


def fake_loaded(
    params: LoadParams = LoadParams(),  # noqa: B008 - frozen
    model_bytes: int = GIB,
    *,
    parks: bool = False,
) -> LoadedModel:
    parallel = params.parallel or 4
    context_length = params.context_length or 4096
    return LoadedModel(
        context_length=context_length,
        parallel=parallel,
        kv_cells=params.kv_cells or context_length * parallel,
        gpu_layers=0,
        n_layers=2,
        threads=params.threads or 1,
        batch=params.batch or 512,
        flash_attention=True,
        kv_cache_type=params.kv_cache_type or "f16",
        trained_context_length=4096,
        n_vocab=1000,
        n_embd=64,
        n_params=1_000_000,
        model_bytes=model_bytes,
        kv_bytes=0,
        compute_bytes=0,
        bos_text="<s>",
        eos_text="</s>",
        add_bos=True,
        load_seconds=0.0,
        parks=parks,
    )


def fake_vectors(request: Embed | Rerank) -> Embedded:
    """Two components of 1 for each text, a score of 1 for each document; a token for each."""
    n = len(request.texts if isinstance(request, Embed) else request.documents)
    width = 2 if isinstance(request, Embed) else 1
    return Embedded(request.id, width, struct.pack("<f", 1.0) * (width * n), n)


class FakeWorker:
    """A worker whose every step the test takes: `finish_load`, `fail_load`, `answer`, `die`, `let_stop`."""

    pids = count(1000)

    def __init__(self, *, stops_at_once: bool = True) -> None:
        self.name = ""
        self.pid = next(self.pids)
        self.facts = fake_facts(self.pid)
        self.stats: EngineStats | None = None
        self.gone: asyncio.Future[LmdError] = asyncio.get_running_loop().create_future()
        self.request: Load | None = None
        self.on_progress: Callable[[float], None] | None = None
        self.open: dict[int, Mailbox] = {}
        self.cancelled: list[int] = []
        self.n_busy = 1
        """Among how many it shares the cores."""
        self.parked = False
        self._loading: asyncio.Future[LoadedModel] | None = None
        self._ids = count(1)
        self._reason: LmdError | None = None
        self._stops_at_once = stops_at_once

    # ── what the test does to it ──────────────────────────────────────────────────────────────

    @property
    def is_loading(self) -> bool:
        return self._loading is not None and not self._loading.done()

    @property
    def ending(self) -> bool:
        return self._reason is not None

    def finish_load(self, loaded: LoadedModel | None = None) -> None:
        assert self._loading is not None and self.request is not None
        self._loading.set_result(loaded or fake_loaded(self.request.params))

    def fail_load(self, error: LmdError | None = None) -> None:
        assert self._loading is not None
        self._loading.set_exception(error or LoadFailed("the file is no model"))

    def answer(self, id: int, text: str = "") -> None:
        """End sequence ``id`` with ``text``."""
        self.open.pop(id).finish(Finished(id, FinishReason.EOG, Usage(completion_tokens=1), text))

    def die(self) -> None:
        """As by ``kill -9`` from outside."""
        self._end(WorkerDied(f"The worker of '{self.name}' was killed by SIGKILL."))
        self.let_stop()

    def let_stop(self) -> None:
        """The process is gone (where ``stops_at_once`` is false)."""
        assert self._reason is not None
        if not self.gone.done():
            self.gone.set_result(self._reason)

    # ── Worker ────────────────────────────────────────────────────────────────────────────────

    async def load(self, request: Load, on_progress: Callable[[float], None], timeout: float) -> LoadedModel:
        if self._reason is not None:
            raise LoadFailed(self._reason.message)
        if self.parked and self.request is not None:
            assert (request.path, request.params) == (self.request.path, self.request.params)
        self.parked = False
        self.request = request
        self.on_progress = on_progress
        self._loading = asyncio.get_running_loop().create_future()
        try:
            return await self._loading
        except BaseException:
            self.kill(Unloaded("The load ended."))
            raise

    def generate(self, request: Generate) -> Mailbox:
        mailbox = Mailbox(next(self._ids), self._cancel)
        if self._reason is not None:
            mailbox.fail(self._reason)
        else:
            self.open[mailbox.id] = mailbox
        return mailbox

    def _cancel(self, id: int) -> None:
        self.cancelled.append(id)
        self.open.pop(id, None)

    def share_cores(self, n_busy: int) -> None:
        self.n_busy = n_busy

    async def embed(self, texts: Sequence[PromptText | PromptTokens], dimensions: int | None = None) -> Embedded:
        if self._reason is not None:
            raise self._reason
        return fake_vectors(Embed(0, list(texts), dimensions))

    async def rerank(self, query: str, documents: Sequence[str]) -> Embedded:
        if self._reason is not None:
            raise self._reason
        return fake_vectors(Rerank(0, query, list(documents)))

    async def tokenize(
        self, prompt: Sequence[PromptText | PromptTokens], add_special: bool = True, pieces: bool = False
    ) -> Tokens:
        if self._reason is not None:
            raise self._reason
        data = "".join(part.text for part in prompt if isinstance(part, PromptText)).encode()
        return Tokens(0, list(data), [bytes([byte]) for byte in data] if pieces else None)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        if self._reason is not None:
            raise self._reason
        return bytes(tokens).decode()

    async def park(self, timeout: float) -> bool:
        self.parked = self._reason is None
        return self.parked

    def kill(self, reason: LmdError) -> None:
        self._end(reason)
        if self._stops_at_once:
            self.let_stop()

    async def stop(self, grace: float) -> None:
        self.kill(Unloaded(f"'{self.name}' is unloaded."))
        await asyncio.shield(self.gone)

    def _end(self, reason: LmdError) -> None:
        if self._reason is not None:
            return
        self._reason = reason
        for mailbox in self.open.values():
            mailbox.fail(type(reason)(reason.message))
        self.open.clear()
        if self.is_loading:
            assert self._loading is not None
            self._loading.set_exception(LoadFailed(reason.message))
            self._loading.exception()


# ── the child ─────────────────────────────────────────────────────────────────────────────────


class _Child:
    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._channel: Channel[ToWorker, FromWorker] = Channel(sock, ToWorker)
        self._open: dict[int, list[str]] = {}
        self._waiting: set[int] = set()
        self._n_busy = 1
        self._path = ""

    def run(self) -> None:
        """Greet, obey, and end when the daemon closes the connection."""
        if os.environ.get("LMD_FAKE_HELLO") == "never":
            time.sleep(3600)
        if os.environ.get("LMD_FAKE_HELLO") == "exit":
            print("cannot find libllama.so", file=sys.stderr)
            sys.exit(3)
        self._channel.send(Hello(fake_facts(os.getpid())))
        try:
            while True:
                for message in self._channel.poll(0.0 if self._open else None):
                    self._take(message)
                self._step()
        except ChannelClosed:
            return

    def _take(self, message: ToWorker) -> None:
        match message:
            case Load():
                self._load(message)
            case Generate():
                self._generate(message)
            case Rerank() if message.query == "hang":
                self._waiting.add(message.id)
            case Embed() | Rerank():
                self._channel.send(fake_vectors(message))
            case Cancel() if message.id in self._waiting:
                self._waiting.remove(message.id)
                print(f"<4>request {message.id} was cancelled", file=sys.stderr, flush=True)
                self._channel.send(Failed(message.id, "internal_error", "The request was cancelled."))
            case Cancel():
                if self._open.pop(message.id, None) is not None:
                    self._channel.send(Finished(message.id, FinishReason.CANCELLED, Usage()))
            case ShareCores():
                self._n_busy = message.n_busy
            case Park() if self._path.endswith("wont-park"):
                pass
            case Park():
                self._channel.send(Parked())
            case Tokenize():
                text = "".join(part.text for part in message.prompt if isinstance(part, PromptText))
                if text == "bad":
                    self._channel.send(Failed(message.id, "invalid_request", "No tokens for this.", param="prompt"))
                else:
                    pieces = [bytes([byte]) for byte in text.encode()] if message.pieces else None
                    self._channel.send(Tokens(message.id, list(text.encode()), pieces))
            case Detokenize():
                self._channel.send(Text(message.id, bytes(message.tokens).decode()))

    def _load(self, load: Load) -> None:
        self._path = load.path
        match load.path.rpartition("/")[2]:
            case "hang":
                print("loading forever", flush=True)
                time.sleep(3600)
            case "refuse":
                self._channel.send(LoadFailedMessage("bad_model_file", "The file is no model."))
                sys.exit(1)
            case "progress-then-die":
                self._channel.send(Progress(0.5))
                self._die("SIGKILL")
            case "abort":
                self._die("SIGABRT")
            case "exit":
                print("error loading model: unknown architecture 'x'", flush=True)
                sys.exit(7)
            case "stubborn":
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                self._channel.send(Loaded(fake_loaded(load.params)))
                time.sleep(3600)
            case _:
                for fraction in (0.0, 0.5, 1.0):
                    self._channel.send(Progress(fraction))
                self._channel.send(Loaded(fake_loaded(load.params)))

    def _generate(self, request: Generate) -> None:
        words = "".join(part.text for part in request.prompt if isinstance(part, PromptText)).split(" ")
        match words[0]:
            case "garbage":
                self._socket.sendall(b"\x03\x00\x00\x00\xc1\xc1\xc1")
            case "huge":
                self._socket.sendall(b"\xff\xff\xff\xffmore")
            case "unknown-id":
                self._channel.send(Step([Output(999_999, "?", 1)]))
            case "out-of-turn":
                self._channel.send(Loaded(fake_loaded()))
            case "too-long":
                self._channel.send(Failed(request.id, "context_length_exceeded", "too long", n_prompt=9, n_ctx=8))
            case "fail":
                self._channel.send(Failed(request.id, words[1], "It cannot be done.", "Do something else."))
            case "cores":
                self._open[request.id] = [str(self._n_busy)]
            case "sleep":
                time.sleep(3600)
            case "close":
                self._channel.send(Step([Output(request.id, "last words", 1)]))
                self._socket.shutdown(socket.SHUT_RDWR)
                time.sleep(3600)
            case "die":
                self._channel.send(Step([Output(request.id, "last words", 1)]))
                self._die(words[1])
            case _:
                self._channel.send(Step([], [Prefilled(request.id, len(words), len(words))]))
                self._open[request.id] = words * (2000 if words[0] == "forever" else 1)

    def _step(self) -> None:
        outputs = []
        ended = []
        for id, words in self._open.items():
            if words:
                outputs.append(Output(id, words.pop(0) if len(words) < 1000 else words[0], 1))
            else:
                ended.append(id)
        if outputs:
            self._channel.send(Step(outputs))
        for id in ended:
            del self._open[id]
            self._channel.send(Finished(id, FinishReason.EOG, Usage(completion_tokens=1)))
        if ended:
            self._channel.send(EngineStats(len(self._open), 0, 0, 1.0, 1.0))

    @staticmethod
    def _die(signal_name: str) -> None:
        print("about to die", flush=True)
        if signal_name == "SIGABRT":
            print("/src/ggml.c:42: GGML_ASSERT(n > 0) failed", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.Signals[signal_name])
        time.sleep(3600)


if __name__ == "__main__":
    _Child(socket.socket(fileno=int(sys.argv[1]))).run()
