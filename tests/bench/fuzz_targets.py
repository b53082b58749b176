"""What is fuzzed in this process: pure readers of what others wrote. Each check raises where it meets a surprise."""

import asyncio
import os
import shlex
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st

from lmd.api.anthropic.decode import decode_count, decode_messages
from lmd.api.body import read_body
from lmd.api.completions.decode import decode_chat, decode_completion
from lmd.api.completions.embeddings import EmbeddingsBody
from lmd.api.lmstudio import body as lmstudio
from lmd.api.native import DetokenizeBody, RerankBody, TokenizeBody
from lmd.errors import InvalidRequest, LmdError, ModelFileError
from lmd.generation import FinishReason, SamplingParams, Usage
from lmd.library.catalog import Catalog
from lmd.library.gguf import read_header, read_tokens
from lmd.loading import LoadedModel, LoadParams, WorkerFacts
from lmd.pool.memory import estimate
from lmd.worker import messages as ipc
from lmd.worker.channel import BadFrame, Channel, ChannelClosed, FrameDecoder, encode_frame
from lmd.worker.process import WorkerProcess
from tests.bench.fuzz_inputs import CLIENT_ROUTES, body_of, spoiled
from tests.lmd.library.conftest import build

TINY = Path(__file__).parents[1] / "models" / "tiny-chat.gguf"
PATIENCE = 20.0
"""Seconds after which one input counts as a hang."""


class Surprise(AssertionError):
    """What must not happen, and is no exception by itself."""


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    title: str
    inputs: st.SearchStrategy[Any]
    check: Callable[[Any], None]


# ── GGUF headers ──────────────────────────────────────────────────────────────────────────────

_HEADER = build(
    {
        "general.architecture": "llama",
        "general.alignment": 32,
        "llama.block_count": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": [4, 4],
        "llama.attention.head_count_kv": 2,
        "llama.attention.sliding_window": 16,
        "words": [f"w{n}" for n in range(200)],
        "tokenizer.ggml.tokens": [f"t{n}" for n in range(900)],
        "tokenizer.chat_template": "{{ messages }}",
        "split.count": 1,
        "ok": True,
        "rope": 1.5,
    }
)
_READ_AT_MOST = 40
"""Times the file's size, and 1 MiB: how much may be read of it."""


class Headers:
    """One file in a folder in memory, written anew for each input."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model.gguf"
        self.folder = folder
        self.inputs = st.one_of(
            spoiled(_HEADER, near=600), spoiled(TINY.read_bytes()[:60_000], near=20_000), st.binary(max_size=200)
        )

    def check(self, data: bytes) -> None:
        self.path.write_bytes(data)
        read, pread = 0, os.pread

        def counted(fd: int, n: int, offset: int) -> bytes:
            nonlocal read
            got = pread(fd, n, offset)
            read += len(got)
            return got

        os.pread = counted
        try:
            with suppress(ModelFileError):
                read_tokens(self.path, {0, 5, 899, 10**12, -1})
            with suppress(ModelFileError):
                header = read_header(self.path)
                for name in dir(header):
                    if not name.startswith("_"):
                        getattr(header, name)
                estimate(header, LoadParams())
                estimate(header, LoadParams(context_length=4096, parallel=4), vram=1 << 20)
        finally:
            os.pread = pread
        if read > 3 * _READ_AT_MOST * len(data) + (1 << 20):
            raise Surprise(f"{read} bytes were read of a file of {len(data)}")
        catalog = Catalog([self.folder])
        catalog.refresh()
        if len(catalog.models) + len(catalog.broken) != 1:
            raise Surprise(f"the catalog has {list(catalog.models)} and {catalog.broken}")


# ── the channel between the daemon and a worker ───────────────────────────────────────────────

_TO_WORKER = [
    ipc.Load("/m.gguf", LoadParams(context_length=512)),
    ipc.Generate(1, [ipc.PromptText("hi"), ipc.PromptTokens([1, 2])], SamplingParams(temperature=0.5, stop=("a",))),
    ipc.Generate(2, [], SamplingParams(), constraint=ipc.Constraint("regex", "a+"), logit_bias={1: 2.0}),
    ipc.Embed(3, [ipc.PromptText("x")], 4),
    ipc.Rerank(4, "q", ["d"]),
    ipc.Cancel(1),
    ipc.Tokenize(5, [ipc.PromptText("x")]),
    ipc.Detokenize(6, [1]),
]
_FACTS = WorkerFacts(pid=1, llama_cpp_python="0", llama_cpp="b1", system_info="", devices=())
_LOADED = LoadedModel(
    context_length=512, parallel=1, kv_cells=512, gpu_layers=0, n_layers=1, threads=1, batch=64, flash_attention=False,
    kv_cache_type="f16", trained_context_length=512, n_vocab=9, n_embd=4, n_params=9, model_bytes=9, kv_bytes=9,
    compute_bytes=9, bos_text="", eos_text="", add_bos=False, load_seconds=0.1,
)  # fmt: skip
_FROM_WORKER = [
    ipc.Progress(0.5),
    ipc.Loaded(_LOADED),
    ipc.LoadFailed("load_failed", "no"),
    ipc.Step([ipc.Output(1, "x", 1)], [ipc.Prefilled(1, 1, 2)]),
    ipc.Finished(1, FinishReason.EOG, Usage(prompt_tokens=1, completion_tokens=1)),
    ipc.Failed(2, "context_length_exceeded", "no", n_prompt=3, n_ctx=2),
    ipc.Embedded(2, 2, bytes(8), 1),
    ipc.Tokens(3, [1]),
    ipc.Text(4, "x"),
    ipc.EngineStats(1, 0, 1, 1.0, 1.0),
]
"""What a worker would say that was asked what `DaemonSide` asks: a sequence 1, and calls 2, 3 and 4."""


@st.composite
def _streams(draw: st.DrawFn, said: list[Any]) -> bytes:
    """Frames of some messages, whole or with their payloads or their whole bytes spoiled."""
    chosen = draw(st.lists(st.sampled_from(said), max_size=8))
    frames = []
    for message in chosen:
        frame = bytes(encode_frame(message))
        if draw(st.integers(0, 2)) == 0:  # a right length before a wrong payload gets past the frames
            frame = bytes(encode_frame(msgspec.Raw(draw(spoiled(frame[4:])))))
        frames.append(frame)
    whole = b"".join(frames)
    return draw(spoiled(whole)) if draw(st.integers(0, 3)) == 0 else whole + draw(st.binary(max_size=6))


def check_channel(case: tuple[bytes, list[int]]) -> None:
    """A worker's end: any pieces give what the whole gives; what is taken for a message is written as it was."""
    data, cuts = case
    pieces = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    whole, split = _frames([data]), _frames([data[a:b] for a, b in pairwise(pieces)])
    if whole != split:
        raise Surprise("pieces of the stream gave other frames than the whole")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        channel: Channel[Any, Any] = Channel(theirs, ipc.ToWorker)
        sent = ours.send(data) if data else 0
        if sent == len(data):
            ours.close()
        taken = []
        with suppress(BadFrame, ChannelClosed):
            while batch := channel.poll(0.0):
                taken += batch
    for message in taken:
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(message), type=ipc.ToWorker)
        if repr(again) != repr(message):  # not ==: NaN is in order here
            raise Surprise(f"{message} is written as {again}")


def _frames(pieces: list[bytes]) -> tuple[list[bytes], bool]:
    decoder = FrameDecoder()
    frames: list[bytes] = []
    try:
        for piece in pieces:
            frames += decoder.feed(piece)
    except BadFrame:
        # How much of a bad stream was taken before depends on its pieces, and on nothing that counts.
        return [], False
    return frames, True


class DaemonSide:
    """The daemon's end of the channel, with a child that says whatever the input is and ends."""

    def __init__(self, folder: Path) -> None:
        self._hello, self._said = folder / "hello", folder / "said"
        self._hello.write_bytes(bytes(encode_frame(ipc.Hello(_FACTS))))
        self.inputs = _streams(_FROM_WORKER)
        # The daemon's requests are one burst of writes: what comes after their first byte finds them all asked.
        script = f"cat {shlex.quote(str(self._hello))} >&$0; head -c1 <&$0; cat {shlex.quote(str(self._said))} >&$0"
        self._command = ("/bin/bash", "-c", f"({script}) 2>/dev/null")

    def check(self, data: bytes) -> None:
        self._said.write_bytes(data)
        asyncio.run(self._talk())

    async def _talk(self) -> None:
        unheard: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: unheard.append(str(told)))
        async with asyncio.timeout(PATIENCE):
            worker = await WorkerProcess.spawn(self._command)
            loading = asyncio.ensure_future(worker.load(ipc.Load("/m", LoadParams()), lambda _: None, 1e9))
            await asyncio.sleep(0)
            mailbox = worker.generate(ipc.Generate(0, [], SamplingParams()))
            calls = [
                asyncio.ensure_future(call)
                for call in (worker.embed([]), worker.tokenize([]), worker.detokenize([]), _read(mailbox))
            ]
            for ended in await asyncio.gather(loading, *calls, return_exceptions=True):
                if isinstance(ended, BaseException) and not isinstance(ended, LmdError):
                    raise ended
            await worker.stop(0)
        if unheard:
            raise Surprise(unheard[0])


async def _read(mailbox: Any) -> None:
    async for _ in mailbox:
        pass


# ── bodies ────────────────────────────────────────────────────────────────────────────────────

_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "/v1/chat/completions": decode_chat,
    "/v1/completions": decode_completion,
    "/v1/messages": decode_messages,
    "/v1/messages/count_tokens": decode_count,
    "/v1/embeddings": lambda raw: read_body(EmbeddingsBody, raw),
    "/v1/rerank": lambda raw: read_body(RerankBody, raw),
    "/tokenize": lambda raw: read_body(TokenizeBody, raw),
    "/detokenize": lambda raw: read_body(DetokenizeBody, raw),
    "/api/v1/chat": lambda raw: read_body(lmstudio.ChatBody, raw),
    "/api/v1/models/load": lambda raw: read_body(lmstudio.LoadBody, raw),
}
_BODIES = st.sampled_from([(path, good) for _, path, good in CLIENT_ROUTES if path in _DECODERS]).flatmap(
    lambda route: st.tuples(st.just(route[0]), body_of(route[1]))
)


def check_body(case: tuple[str, bytes]) -> None:
    """A dialect's decoder: a request, or InvalidRequest with a message and, for a field, its name."""
    path, raw = case
    try:
        _DECODERS[path](raw)
    except InvalidRequest as error:
        if not error.message.endswith((".", "?", "!")):
            raise Surprise(f"the message ends in the middle: {error.message[-200:]!r}") from error
        error.message.encode()  # it is going to be JSON


# ── all of them ───────────────────────────────────────────────────────────────────────────────


def pure_targets(folder: Path) -> list[Target]:
    """``folder``: for their files, best in memory."""
    headers = Headers(Path(tempfile.mkdtemp(dir=folder)))
    daemon = DaemonSide(Path(tempfile.mkdtemp(dir=folder)))
    streams = st.tuples(_streams(_TO_WORKER), st.lists(st.integers(0, 1 << 16), max_size=4))
    return [
        Target("gguf", "GGUF headers, the catalog and the memory estimate", headers.inputs, headers.check),
        Target("channel", "IPC, the worker's end", streams, check_channel),
        Target("worker", "IPC, the daemon's end with a process", daemon.inputs, daemon.check),
        Target("bodies", "HTTP bodies, decoders of all dialects", _BODIES, check_body),
    ]
