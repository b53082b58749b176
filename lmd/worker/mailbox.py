"""Where the answer to one `Generate` waits for its consumer.

The reader of the socket puts, the request's task takes; both on the event loop. A consumer that is
slower than the model finds everything that came meanwhile as one item: memory stays that of the
text, and nobody waits for it. One that keeps up may have its outputs handed over without its task being woken.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from msgspec.structs import replace

from lmd.errors import LmdError
from lmd.worker.messages import Finished, JoinedOutput, Output, Prefilled


class Mailbox(AsyncIterator[Output | Prefilled | Finished]):
    """Async iterator over one answer; `Finished` is its last item.

    ``anext`` may be cancelled without losing anything. Leaving an ``async for`` early does not close it: call `aclose`.
    """

    __slots__ = (
        "_ended", "_error", "_finished", "_more", "_on_close", "_output", "_prefilled", "_waiter", "direct", "id",
    )  # fmt: skip

    def __init__(self, id: int, on_close: Callable[[int], None]) -> None:
        """``on_close`` is called with the id once, and only when the consumer closes before the end."""
        self.id = id
        self._on_close = on_close
        self._prefilled: Prefilled | None = None
        self._output: Output | None = None
        self._more: list[Output] = []
        self._finished: Finished | None = None
        self._error: Exception | None = None
        self._ended = False
        """Nothing more will be put, or the consumer wants no more."""
        self._waiter: asyncio.Future[None] | None = None
        self.direct: Callable[[Output], bool] | None = None
        """Offered each output that comes while the consumer waits, so after it has dealt with all before. True: taken,
        the consumer goes on waiting. What it raises is raised to the consumer. To wake a task for every token, through
        all that it stands in, costs more than the token."""

    # ── the reader's side ─────────────────────────────────────────────────────────────────────

    def put(self, output: Output) -> None:
        if self._ended or self._error is not None:
            return
        if self.direct is not None and self._waiter is not None and not self._waiter.done():
            try:
                if self.direct(output):
                    return
            except Exception as error:  # carried over to the consumer's task
                self._error = error
                self._wake()
                return
        if self._output is None:
            self._output = output
        else:
            self._more.append(output)
        self._wake()

    def put_prefilled(self, prefilled: Prefilled) -> None:
        if not self._ended:
            before = self._prefilled
            if before is not None and before.logprobs:
                prefilled = replace(prefilled, logprobs=[*before.logprobs, *(prefilled.logprobs or ())])
            self._prefilled = prefilled
            self._wake()

    def finish(self, finished: Finished) -> None:
        if not self._ended:
            self._finished = finished
            self._ended = True
            self._wake()

    def fail(self, error: LmdError) -> None:
        """What was put before is still delivered, then ``error`` is raised once."""
        if not self._ended:
            self._error = error
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    # ── the consumer's side ───────────────────────────────────────────────────────────────────

    async def __anext__(self) -> Output | Prefilled | Finished:
        while True:
            if self._prefilled is not None:
                prefilled, self._prefilled = self._prefilled, None
                return prefilled
            if self._output is not None:
                return self._take_output()
            if self._ended or self._error is not None:
                break
            if self._waiter is not None:
                raise RuntimeError("two tasks read one answer")
            self._waiter = waiter = asyncio.get_running_loop().create_future()
            try:
                await waiter
            finally:
                if self._waiter is waiter:
                    self._waiter = None
        if self._error is not None:
            raise self._take_error(self._error)
        if self._finished is not None:
            finished, self._finished = self._finished, None
            return finished
        raise StopAsyncIteration

    def _take_error(self, error: Exception) -> Exception:
        """``error``, once. No frame that it is raised through holds it: in a cycle, it would hold the whole request."""
        self._error = self._finished = None
        if not self._ended:  # what went wrong was on our side
            self._ended = True
            self._on_close(self.id)
        return error

    def _take_output(self) -> Output:
        first, self._output = self._output, None
        assert first is not None
        if not self._more:
            return first
        outputs = [first, *self._more]
        self._more = []
        logprobs = [entry for output in outputs if output.logprobs for entry in output.logprobs]
        return JoinedOutput(
            self.id,
            "".join(output.text for output in outputs),
            sum(output.n_tokens for output in outputs),
            logprobs if any(output.logprobs is not None for output in outputs) else None,
            [(len(output.text), output.n_tokens) for output in outputs],
        )

    def close(self) -> None:
        """Take no more. Cancels the sequence where it has not ended."""
        cancel = not self._ended
        self._ended = True
        self._prefilled = self._output = self._finished = self._error = self.direct = None
        self._more = []
        self._wake()
        if cancel:
            self._on_close(self.id)

    async def aclose(self) -> None:
        self.close()
