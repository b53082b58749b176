"""The daemon's side of a worker: speak with the child, explain its death.

`Worker` is what the pool knows; `WorkerProcess` is the real one (`lmd.worker.fake` has the other).
Everything runs on the event loop.
"""

import asyncio
import logging
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol, Self

import msgspec

from lmd.errors import BY_CODE, ContextLengthExceeded, LmdError, LoadFailed, Unloaded, WorkerDied, again
from lmd.loading import LoadedModel, WorkerFacts
from lmd.log import fields
from lmd.worker.cgroup import oom_kills
from lmd.worker.channel import NO_MESSAGE, BadFrame, FrameDecoder, encode_frame
from lmd.worker.child import Child
from lmd.worker.death import explain
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
    Park,
    Parked,
    Progress,
    PromptText,
    PromptTokens,
    Rerank,
    ShareCores,
    Step,
    Text,
    Tokenize,
    Tokens,
)
from lmd.worker.messages import LoadFailed as LoadFailedMessage
from lmd.worker.output import LineReader

log = logging.getLogger("lmd.worker")

COMMAND = (sys.executable, "-m", "lmd.worker.main")
HELLO_TIMEOUT = 60.0
"""Seconds until a new process must have said hello: import and backend start, on a machine that is busy."""
_EXIT_PATIENCE = 2.0
"""Seconds that a worker whose socket is closed may take to end by itself."""
_TAIL_PATIENCE = 0.5
"""Seconds to wait for what a dead process had still written."""

OnProgress = Callable[[float], None]


class Worker(Protocol):
    """A child that serves one model. What waits for it raises WorkerDied, or `kill`'s reason, when it ends."""

    name: str
    """The instance's id, for the log."""

    @property
    def facts(self) -> WorkerFacts: ...

    @property
    def pid(self) -> int: ...

    @property
    def stats(self) -> EngineStats | None:
        """The engine's latest word."""

    @property
    def gone(self) -> asyncio.Future[LmdError]:
        """Done, with the reason, once the process has ended and is reaped; never an exception. Await it shielded."""

    async def load(self, request: Load, on_progress: OnProgress, timeout: float) -> LoadedModel:
        """Once in a life, and after each `park` the same again. Raises LoadFailed or what the worker says; the worker
        then ends, as when cancelled."""

    def generate(self, request: Generate) -> Mailbox:
        """Sends it at once, with an id of its own. Close the mailbox when leaving it early."""

    async def embed(self, texts: Sequence[PromptText | PromptTokens], dimensions: int | None = None) -> Embedded:
        """One vector for each text. What is not computed when the caller leaves never is."""

    async def rerank(self, query: str, documents: Sequence[str]) -> Embedded:
        """One score for each document; else as `embed`."""

    async def tokenize(
        self, prompt: Sequence[PromptText | PromptTokens], add_special: bool = True, pieces: bool = False
    ) -> Tokens: ...

    async def detokenize(self, tokens: Sequence[int]) -> str: ...

    def share_cores(self, n_busy: int) -> None:
        """``n_busy`` instances compute now, this one among them: it takes its part of the cores."""

    async def park(self, timeout: float) -> bool:
        """Have it free everything but its model's vocabulary, where the load said that it can: it then waits for the
        same `load`. False: it did not within ``timeout`` seconds, and has to be ended."""

    def kill(self, reason: LmdError) -> None:
        """End it now: everything pending raises ``reason`` at once. Idempotent."""

    async def stop(self, grace: float) -> None:
        """Close the connection, give it ``grace`` seconds to end by itself, then force it. Returns once reaped."""


class WorkerProcess:
    """A worker in a child process of its own. Make one with `spawn`."""

    def __init__(self, child: Child, loop: asyncio.AbstractEventLoop) -> None:
        self.name = f"worker-{child.pid}"
        self.stats: EngineStats | None = None
        self.gone: asyncio.Future[LmdError] = loop.create_future()
        self._child = child
        self._loop = loop
        self._decode = msgspec.msgpack.Decoder(FromWorker).decode
        self._frames = FrameDecoder()
        self._ids = count(1)
        self._mailboxes: dict[int, Mailbox] = {}
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._hello: asyncio.Future[WorkerFacts] = loop.create_future()
        self._loading: asyncio.Future[LoadedModel] | None = None
        self._parking: asyncio.Future[bool] | None = None
        self._on_progress: OnProgress | None = None
        self._reason: LmdError | None = None
        """Why it is ending, where we know before it has ended."""
        self._patience = _EXIT_PATIENCE
        self._closed: asyncio.Future[None] = loop.create_future()
        self._output = LineReader(self._log_line)
        self._transport: asyncio.Transport | None = None
        self._oom_kills = oom_kills()
        self._watching: asyncio.Task[None] | None = None

    # ── life ──────────────────────────────────────────────────────────────────────────────────

    @classmethod
    async def spawn(cls, command: Sequence[str] = COMMAND, hello_timeout: float = HELLO_TIMEOUT) -> Self:
        """Start a child and wait for its Hello. Raises LoadFailed. Cancelling it ends the child. Main thread only."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                child = Child(command, theirs)  # a vfork and an exec: milliseconds
        except LoadFailed:
            ours.close()
            raise
        worker = cls(child, asyncio.get_running_loop())
        try:
            async with asyncio.timeout(hello_timeout):
                await worker._connect(ours)
                await asyncio.shield(worker._hello)
        except TimeoutError:
            error = LoadFailed(f"A worker process did not answer within {hello_timeout:g} seconds of its start.")
            worker.kill(error)
            raise error from None
        except BaseException:
            worker.kill(Unloaded("The worker is not needed any more."))
            ours.close()
            raise
        log.debug("worker %d waits for a model", worker.pid)
        return worker

    async def _connect(self, sock: socket.socket) -> None:
        await self._loop.connect_read_pipe(lambda: self._output, self._child.output)
        sock.setblocking(False)
        self._transport, _ = await self._loop.create_unix_connection(lambda: _Wire(self), sock=sock)
        self._watching = self._loop.create_task(self._watch(), name=f"watch worker {self.pid}")

    @property
    def facts(self) -> WorkerFacts:
        return self._hello.result()

    @property
    def pid(self) -> int:
        return self._child.pid

    def kill(self, reason: LmdError) -> None:
        self._end(reason)
        self._child.signal(signal.SIGKILL)

    async def stop(self, grace: float) -> None:
        self._patience = grace
        self._end(Unloaded(f"'{self.name}' is unloaded."))
        if grace <= 0:
            self._child.signal(signal.SIGKILL)
        await asyncio.shield(self.gone)

    def _end(self, reason: LmdError) -> None:
        if self._reason is None:
            self._reason = reason
        self._fail_pending(self._reason)
        if self._transport is not None:
            self._transport.abort()

    async def _watch(self) -> None:
        """From birth to the grave: notices the end, waits for the rest of what it said, and tells everybody why."""
        await asyncio.wait((self._closed, self._child.exited), return_when=asyncio.FIRST_COMPLETED)
        if self._child.exited.done():
            # Another process may hold the socket or the pipe, so there is no end to rely on.
            await asyncio.wait((self._closed,), timeout=_TAIL_PATIENCE)
        else:
            await self._child.insist_on_exit(self._patience)
        await asyncio.wait((self._output.closed,), timeout=_TAIL_PATIENCE)
        expected = self._reason is not None
        reason = self._reason or self._death()
        self._end(reason)
        self._output.close()
        if expected:
            log.debug("worker %d has ended", self.pid, extra=fields(INSTANCE=self.name))
        else:
            log.error("%s", reason.message, extra=fields(INSTANCE=self.name, WORKER_PID=self.pid))
            for line in self._output.tail:
                log.error("… %s", line, extra=fields(INSTANCE=self.name, WORKER_PID=self.pid))
        if not self._hello.done():
            self._hello.set_exception(LoadFailed(reason.message, hint=reason.hint))
            self._hello.exception()  # retrieved: nobody may be waiting any more
        self.gone.set_result(reason)

    def _death(self) -> LmdError:
        death = explain(self._child.returncode, self._output.tail, oom_kills() > self._oom_kills)
        if self._loading is not None and not self._loading.done():
            return LoadFailed(death.sentence(f"The worker that was loading '{self.name}'"), hint=death.hint)
        return WorkerDied(death.sentence(f"The worker of '{self.name}'"), hint=death.hint)

    def _log_line(self, level: int, line: str) -> None:
        log.log(level, "%s", line, extra=fields(INSTANCE=self.name, WORKER_PID=self.pid))

    # ── what the daemon asks ──────────────────────────────────────────────────────────────────

    async def load(self, request: Load, on_progress: OnProgress, timeout: float) -> LoadedModel:
        if self._reason is not None:
            raise again(self._reason)
        self._loading = self._loop.create_future()
        self._on_progress = on_progress
        self._send(request)
        try:
            async with asyncio.timeout(timeout if timeout < 1e9 else None):
                return await self._loading
        except TimeoutError:
            error = LoadFailed(
                f"'{self.name}' was not loaded after {timeout:g} seconds, and its worker was ended.",
                hint="Raise [models] load_timeout if the model is on slow storage.",
            )
            self.kill(error)
            raise error from None
        except asyncio.CancelledError:
            self.kill(Unloaded(f"The load of '{self.name}' was abandoned."))
            raise
        finally:
            self._on_progress = None

    async def park(self, timeout: float) -> bool:
        if self._reason is not None:
            return False
        self._parking = self._loop.create_future()
        self._send(Park())
        await asyncio.wait((self._parking,), timeout=timeout)
        self.stats = None
        return self._parking.done() and self._parking.result()

    def generate(self, request: Generate) -> Mailbox:
        mailbox = Mailbox(next(self._ids), self._cancel)
        if self._reason is not None:
            mailbox.fail(again(self._reason))
            return mailbox
        self._mailboxes[mailbox.id] = mailbox
        self._send(msgspec.structs.replace(request, id=mailbox.id))
        return mailbox

    async def embed(self, texts: Sequence[PromptText | PromptTokens], dimensions: int | None = None) -> Embedded:
        answer: Embedded = await self._call(lambda id: Embed(id, list(texts), dimensions))
        return answer

    async def rerank(self, query: str, documents: Sequence[str]) -> Embedded:
        answer: Embedded = await self._call(lambda id: Rerank(id, query, list(documents)))
        return answer

    async def tokenize(
        self, prompt: Sequence[PromptText | PromptTokens], add_special: bool = True, pieces: bool = False
    ) -> Tokens:
        tokens: Tokens = await self._call(lambda id: Tokenize(id, list(prompt), add_special, pieces))
        return tokens

    async def detokenize(self, tokens: Sequence[int]) -> str:
        text: str = await self._call(lambda id: Detokenize(id, list(tokens)))
        return text

    def share_cores(self, n_busy: int) -> None:
        self._send(ShareCores(n_busy))

    async def _call(self, request: Callable[[int], Embed | Rerank | Tokenize | Detokenize]) -> Any:
        if self._reason is not None:
            raise again(self._reason)
        id = next(self._ids)
        # A caller that leaves cancels the future; its entry stays until the answer comes.
        future = self._calls[id] = self._loop.create_future()
        self._send(request(id))
        try:
            return await future
        except asyncio.CancelledError:
            self._cancel(id)
            raise
        finally:
            del future  # it has the error, whose traceback has this frame and those of the request

    def _cancel(self, id: int) -> None:
        # The closed mailbox stays until the worker says that the sequence ended, and takes what still comes.
        if self._reason is None:
            self._send(Cancel(id))

    def _send(self, message: Any) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode_frame(message))

    # ── what the worker says ──────────────────────────────────────────────────────────────────

    def _received(self, data: bytes) -> None:
        try:
            for payload in self._frames.feed(data):
                message = self._decode(payload)
                if type(message) is Step:  # first, and with nothing to spare: this is every token of every stream
                    mailboxes = self._mailboxes
                    for prefilled in message.prefilled:
                        mailboxes[prefilled.id].put_prefilled(prefilled)
                    for output in message.outputs:
                        mailboxes[output.id].put(output)
                else:
                    self._dispatch(message)
        except (BadFrame, *NO_MESSAGE) as exc:
            self._lied(f"sent something that is no message ({exc})")
        except KeyError as exc:
            self._lied(f"answered a request that it was not given (id {exc})")

    def _dispatch(self, message: Any) -> None:
        match message:
            case EngineStats():
                self.stats = message
            case Finished():
                self._mailboxes.pop(message.id).finish(message)
            case Failed() if message.id in self._calls:
                self._settle(self._calls.pop(message.id), error_of(message))
            case Failed():
                self._mailboxes.pop(message.id).fail(error_of(message))
            case Embedded() | Tokens():
                self._settle(self._calls.pop(message.id), message)
            case Text():
                self._settle(self._calls.pop(message.id), message.text)
            case Progress() if self._loading is not None and not self._loading.done():
                if self._on_progress is not None:
                    self._on_progress(min(1.0, max(0.0, message.fraction)))
            case Loaded() if self._loading is not None and not self._loading.done():
                self._loading.set_result(message.model)
            case Parked() if self._parking is not None and not self._parking.done():
                self._parking.set_result(True)
            case LoadFailedMessage() if self._loading is not None and not self._loading.done():
                error = BY_CODE.get(message.code, LoadFailed)(message.message, hint=message.hint, param=message.param)
                self._loading.set_exception(error)
                self.kill(error)
            case Hello() if not self._hello.done():
                self._hello.set_result(message.facts)
            case _:
                self._lied(f"said {type(message).__name__} out of turn")

    @staticmethod
    def _settle(future: asyncio.Future[Any], answer: Any) -> None:
        if future.done():
            return
        if isinstance(answer, LmdError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _lied(self, what: str) -> None:
        if self._reason is None:
            log.error("worker %d %s", self.pid, what, extra=fields(INSTANCE=self.name))
            self.kill(WorkerDied(f"The worker of '{self.name}' {what} and was ended."))

    def _fail_pending(self, reason: LmdError) -> None:
        for mailbox in self._mailboxes.values():
            mailbox.fail(again(reason))
        self._mailboxes.clear()
        for future in self._calls.values():
            self._settle(future, again(reason))
        self._calls.clear()
        if self._parking is not None and not self._parking.done():
            self._parking.set_result(False)
        if self._loading is not None and not self._loading.done():
            error = reason if isinstance(reason, LoadFailed) else LoadFailed(reason.message, hint=reason.hint)
            self._loading.set_exception(error)
            self._loading.exception()  # retrieved: a load that was cancelled has nobody who would


class _Wire(asyncio.Protocol):
    """The connection, which keeps the worker alive only as long as the event loop keeps it."""

    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker

    def data_received(self, data: bytes) -> None:
        if self._worker._reason is None:
            self._worker._received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._worker._closed.done():
            self._worker._closed.set_result(None)


def error_of(failed: Failed) -> LmdError:
    """The error that the worker means."""
    if failed.code == ContextLengthExceeded.code:
        return ContextLengthExceeded(failed.n_prompt, failed.n_ctx)
    return BY_CODE.get(failed.code, LmdError)(failed.message, hint=failed.hint, param=failed.param)
