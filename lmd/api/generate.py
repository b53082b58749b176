"""The one path of every dialect: a request in, events out.

    resolve name → Target → lease an instance → render the prompt → n sequences → parse → events

Making a `Generation` does the first step, so that an unknown model is known before anything is waited for;
`Generation.events` does the rest. Nothing here knows HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from lmd.api.activity import RequestRecord, current_record
from lmd.api.candidates import likeliest
from lmd.api.metrics import PieceTimes
from lmd.api.prompt import Parser, Prepared, prepare
from lmd.api.served import Served, find_served
from lmd.api.services import Services
from lmd.errors import InvalidRequest
from lmd.generation import (
    Echo,
    Finished,
    FinishReason,
    GenerationEvent,
    GenerationRequest,
    LoadDone,
    LoadProgress,
    PromptProgress,
    TextDelta,
    TokenLogprob,
    Usage,
    total_usage,
)
from lmd.log import request_id
from lmd.worker.mailbox import Mailbox
from lmd.worker.messages import JoinedOutput, Output, Prefilled

if TYPE_CHECKING:
    from lmd.api.watchers import Items
    from lmd.loading import LoadedModel
    from lmd.pool.lease import Lease
    from lmd.worker.messages import Generate

Events = AsyncGenerator[GenerationEvent, None]


class Outlet(Protocol):
    """Where the events of a stream that runs can go at once, past the tasks and generators that serve it."""

    def ready(self) -> bool:
        """Whether `write` may be called now: the beginning is out, and its reader keeps up."""

    def write(self, events: Sequence[GenerationEvent]) -> None: ...


class Generation:
    """One request on its way. Raises what resolving its model raises: ModelNotFound, AmbiguousModel, Draining, …"""

    def __init__(self, services: Services, request: GenerationRequest, first_choice: int = 0) -> None:
        """``first_choice``: the number of this request's first choice, where an answer joins several requests."""
        services.activity.refuse_if_draining()
        self.request = request
        self._first_choice = first_choice
        self.served: Served = find_served(services, request)
        if self.served.encodes:
            raise InvalidRequest(
                f"'{self.served.name}' turns texts into vectors or scores; it generates no text.",
                hint="Ask it at /v1/embeddings or /v1/rerank, or name a model that generates.",
                param="model",
            )
        self.loaded: LoadedModel | None = None
        """What serves it, from `LoadDone` on."""
        self._services = services
        self._record = current_record()
        if self._record is not None:
            self._record.model = self.model
            self._record.preset = self.served.preset

    @property
    def model(self) -> str:
        """The name asked for, made canonical: a preset's name, a model key, or an instance's identifier."""
        return self.served.name

    @property
    def _numbers(self) -> range:
        return range(self._first_choice, self._first_choice + (self.request.best_of or self.request.n))

    async def events(self, outlet: Outlet | None = None) -> Events:
        """Everything that happens, once. Closing this (or cancelling) ends the sequences and gives the lease back.

        Pieces of the answer after the first go to ``outlet`` in place of being yielded, whenever it is ready while
        this waits for the worker and what came before was taken: only for who sends each event as it comes.
        Raises the request's LmdError at the point where it happens.
        """
        with self._services.activity.request():
            leasing = _Leasing(self._services, self.served)
            try:
                async for fraction in leasing.progress():
                    yield LoadProgress(fraction, self.served.wanted.id)
                lease = leasing.lease
                self.loaded = lease.loaded
                if self._record is not None:
                    self._record.instance = lease.instance_id
                    self._record.waited = lease.waited
                yield LoadDone(lease.instance_id, lease.waited)
                prepared = await prepare(self.served, self.request, lease)
                async with aclosing(self._choices(lease, prepared, outlet)) as events:
                    async for event in events:
                        yield event
            finally:
                leasing.release()

    async def _choices(self, lease: Lease, prepared: Prepared, outlet: Outlet | None) -> Events:
        """All choices' events as they come. The record learns the time of the first piece, and the usage."""
        record, first = self._record, True
        ended: dict[int, Usage] = {}
        ranking = len(self._numbers) > self.request.n
        candidates: dict[int, list[GenerationEvent]] = {choice: [] for choice in self._numbers}
        if len(self._numbers) > 1:
            outlet = None  # events of several choices wait for each other
        pieces = self._services.metrics.pieces
        streams = [
            _sequence(partial(self._start, lease, prepared.generate(choice), choice), prepared, choice, pieces, outlet)
            for choice in self._numbers
        ]
        async with aclosing(streams[0] if len(streams) == 1 else merged(streams)) as events:
            async for event in events:
                if first and not isinstance(event, PromptProgress | Echo):
                    first = False
                    note_first_piece(record)
                if type(event) is Finished:
                    ended[event.choice] = event.usage
                if not ranking:
                    yield event
                elif isinstance(event, TextDelta | Finished):
                    candidates[event.choice].append(event)
        if ranking:
            asked = self.request
            best = likeliest(list(candidates.values()), asked.n, keep_logprobs=asked.logprobs is not None)
            for one in best:
                yield replace(one, choice=one.choice + self._first_choice)
        if record is not None:
            note_usage(record, total_usage([ended[choice] for choice in sorted(ended)]))

    def _start(self, lease: Lease, order: Generate, choice: int) -> Items:
        """What the worker says of one choice; those who watch are told."""
        watchers = self._services.watchers
        if not watchers:
            return lease.generate(order)
        return watchers.over(lease, order, model=self.model, request=request_id() or "", choice=choice)


async def count_prompt(services: Services, request: GenerationRequest) -> int:
    """Tokens of the prompt that ``request`` would feed; a model that is not loaded is. Raises as `Generation`."""
    services.activity.refuse_if_draining()
    served = find_served(services, request)
    with services.activity.request():
        async with services.pool.lease(served.wanted) as lease:
            order = (await prepare(served, request, lease)).generate(0)
            return len(await lease.tokenize(order.prompt, order.add_special))


def note_first_piece(record: RequestRecord | None) -> None:
    if record is not None and record.first_token is None:
        record.first_token = time.monotonic()


def note_usage(record: RequestRecord, usage: Usage) -> None:
    """Add a prompt's usage: one body may hold several prompts."""
    before = record.usage
    record.usage = (
        usage
        if before is None
        else replace(
            total_usage([before, usage]),
            prompt_tokens=before.prompt_tokens + usage.prompt_tokens,
            cached_tokens=before.cached_tokens + usage.cached_tokens,
        )
    )


class _Leasing:
    """Takes a lease in a task of its own, so that the load's progress can be told meanwhile."""

    def __init__(self, services: Services, served: Served) -> None:
        self._changed = asyncio.Event()
        self._fraction: float | None = None
        self._entering = asyncio.ensure_future(services.pool.acquire(served.wanted, self._on_progress))
        self._entering.add_done_callback(lambda _: self._changed.set())

    def _on_progress(self, fraction: float) -> None:
        self._fraction = fraction
        self._changed.set()

    async def progress(self) -> AsyncIterator[float]:
        """The load's fractions until the lease is held. Raises what prevents it."""
        while not self._entering.done():
            await self._changed.wait()
            self._changed.clear()
            if self._fraction is not None and not self._entering.done():
                fraction, self._fraction = self._fraction, None
                yield fraction
        self._entering.result()

    @property
    def lease(self) -> Lease:
        return self._entering.result()

    def release(self) -> None:
        """Give the lease back, or stop waiting for it. What prevented it was told by `progress`.

        Awaits nothing: a client that leaves in the moment when its answer ends cancels this task once more.
        """
        entering = self._entering
        del self._entering  # what it raised has a traceback that holds this, and with it the request
        if not entering.cancel() and not entering.cancelled() and entering.exception() is None:
            entering.result().close()


class _Reader:
    """Takes what the worker says of one choice apart, and counts how long each piece was in coming."""

    def __init__(self, parser: Parser, pieces: PieceTimes, outlet: Outlet | None) -> None:
        self._parser = parser
        self._pieces = pieces
        self._outlet = outlet
        self._last = 0.0

    def read(self, output: Output) -> Sequence[GenerationEvent]:
        if output.n_tokens:
            now = time.monotonic()
            if self._last:
                self._pieces.add(now - self._last, output.n_tokens)
            self._last = now
        steps = output.steps if isinstance(output, JoinedOutput) else ((len(output.text), output.n_tokens),)
        return self._parser.feed(output.text, steps, output.logprobs)

    def pass_on(self, output: Output) -> bool:
        """Straight to the outlet, for `Mailbox.direct`."""
        outlet = self._outlet
        if outlet is None or not outlet.ready():
            return False
        if events := self.read(output):
            outlet.write(events)
        return True


async def _sequence(
    start: Callable[[], Items], prepared: Prepared, choice: int, pieces: PieceTimes, outlet: Outlet | None
) -> Events:
    """One choice: a sequence in the worker, its text taken apart by the model's format."""
    echo = None if prepared.echo_logprobs else prepared.echo
    told: list[TokenLogprob] = []
    parser = prepared.parser(choice)
    reader = _Reader(parser, pieces, outlet)
    async with aclosing(start()) as items:
        async for item in items:
            if echo:  # not before the worker has taken the request: what is wrong with it is told without a beginning
                yield Echo(echo, choice)
                echo = None
            if isinstance(item, Output):
                events = reader.read(item)
                for event in events:
                    yield event
                # The first piece has gone the long way, where its time is noted.
                if events and outlet is not None and isinstance(items, Mailbox):
                    items.direct = reader.pass_on
            elif isinstance(item, Prefilled):
                yield PromptProgress(item.done, item.total, choice)
                told += item.logprobs or ()
                if prepared.echo_logprobs and item.done == item.total:
                    yield Echo(prepared.echo, choice, tuple(told))
            else:
                for event in parser.feed(item.text, (), None):
                    yield event
                for event in parser.flush():
                    yield event
                reason = item.reason
                if parser.calls and reason in {FinishReason.EOG, FinishReason.STOP}:
                    reason = FinishReason.TOOL_CALLS
                stop = item.stop if item.stop not in prepared.own_stops else None
                if item.stop is not None and stop is None and reason is FinishReason.STOP:
                    reason = FinishReason.EOG  # the format's own end of a turn, not the client's stop string
                usage = replace(item.usage, reasoning_tokens=parser.reasoning_tokens)
                yield Finished(reason, usage, choice, stop)


async def merged(streams: Sequence[Events]) -> Events:
    """The events of several streams as they come. The first failure ends all; closing this closes all."""
    queue: asyncio.Queue[GenerationEvent | BaseException | None] = asyncio.Queue(maxsize=2 * len(streams))

    async def pump(stream: Events) -> None:
        try:
            async with aclosing(stream):
                async for event in stream:
                    await queue.put(event)
            await queue.put(None)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # carried over to the consumer's task
            await queue.put(error)

    pumps = [asyncio.create_task(pump(stream)) for stream in streams]
    try:
        running = len(pumps)
        while running:
            item = await queue.get()
            if item is None:
                running -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        item = None  # errors have tracebacks, and those have the frames that have the errors
        while not queue.empty():
            queue.get_nowait()
