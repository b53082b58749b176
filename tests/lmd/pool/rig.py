"""A pool whose memory, time and workers the test holds in its hands."""

import asyncio
from pathlib import Path
from types import SimpleNamespace

from lmd.generation import SamplingParams
from lmd.library.header import Header
from lmd.loading import LoadParams
from lmd.pool.clock import FakeClock
from lmd.pool.memory import MIB, PROCESS_BYTES, Reading
from lmd.pool.pool import Pool
from lmd.pool.wanted import Wanted
from lmd.worker.fake import FakeWorker, fake_loaded
from lmd.worker.messages import Finished, Generate, PromptText

GIB = 2**30
SAY = Generate(0, [PromptText("hi")], SamplingParams())


def header(size, **values):
    return Header(
        version=3,
        size=size,
        data_offset=0,
        n_tensors=1,
        n_params=1,
        tensor_bytes=size,
        block_bytes=(),
        quantization="",
        has_output=True,
        values={"general.architecture": "llama"} | {f"llama.{key}": value for key, value in values.items()},
        lengths={},
    )


def model(name, gib=1.0):
    """A model whose instance takes ``gib`` GiB, the worker process included."""
    return SimpleNamespace(key=name, path=Path(f"/models/{name}.gguf"), header=header(int(gib * GIB) - PROCESS_BYTES))


def want(name, gib=1.0, *, ttl=60.0, context_length=None, parallel=None, **options):
    load = LoadParams(context_length=context_length, parallel=parallel)
    return Wanted(model=model(name, gib), name=name, ttl=ttl, load=load, **options)


class Rig:
    def __init__(self, gib=10.0, *, stops_at_once=True, parks=False, **settings):
        """``parks``: its workers can keep a vocabulary."""
        self.parks = parks
        self.vocabulary = 0
        """Bytes that a parked worker keeps."""
        defaults = {
            "max_loaded": 0,
            "memory_limit": "auto",
            "eviction": "fit",
            "prompt_cache": 0,
            "standby": False,
            "parked": 0,
            "load_timeout": 600.0,
            "queue_timeout": 300.0,
        }
        self.settings = SimpleNamespace(**(defaults | settings))
        self.clock = FakeClock()
        self.workers = []
        self.stops_at_once = stops_at_once
        self.spawn_error = None
        self.ram = int(gib * GIB)
        self.pool = Pool(lambda: self.settings, self.spawn, self.probe, self.clock)

    async def spawn(self):
        if self.spawn_error is not None:
            raise self.spawn_error
        worker = FakeWorker(stops_at_once=self.stops_at_once)
        self.workers.append(worker)
        return worker

    def probe(self, pids):
        # The margin that the pool leaves to the machine comes on top.
        parked = sum(worker.parked for worker in self.alive()) * self.vocabulary
        return Reading(total=GIB, available=self.ram + 256 * MIB - parked, anonymous={})

    async def start(self):
        await self.pool.start()
        await settle()
        return self

    async def advance(self, seconds):
        await settle()
        self.clock.advance(seconds)
        await settle()

    # ── workers ───────────────────────────────────────────────────────────────────────────────

    def alive(self):
        return [worker for worker in self.workers if not worker.gone.done()]

    def loading(self):
        return [worker for worker in self.alive() if worker.is_loading]

    def of(self, id):
        """The newest worker of an instance."""
        return next(w for w in reversed(self.workers) if w.name == id and w.request is not None)

    def finish(self, worker, gib):
        worker.finish_load(fake_loaded(worker.request.params, int(gib * GIB) - PROCESS_BYTES, parks=self.parks))

    async def finish_loads(self, gib=1.0):
        for worker in self.loading():
            self.finish(worker, gib)
        await settle()

    # ── clients ───────────────────────────────────────────────────────────────────────────────

    def request(self, wanted, on_progress=None):
        """A client: leases, generates, ends with the answer's text."""
        return asyncio.ensure_future(self._request(wanted, on_progress))

    async def _request(self, wanted, on_progress):
        async with self.pool.lease(wanted, on_progress) as lease:
            async for item in lease.generate(SAY):
                if isinstance(item, Finished):
                    return f"{lease.instance_id}: {item.text}"
        raise AssertionError("an answer without an end")

    async def answer(self, worker, text="ok"):
        for id in list(worker.open):
            worker.answer(id, text)
        await settle()

    async def loaded(self, wanted, gib=1.0):
        """Load it explicitly; no lease is left. Returns its worker."""
        load = asyncio.ensure_future(self.pool.load(wanted))
        await settle()
        await self.finish_loads(gib)
        outcome = await load
        return self.of(outcome.instance.id)

    async def served(self, wanted, gib=1.0):
        """One request from beginning to end. Returns the worker."""
        request = self.request(wanted)
        await settle()
        await self.finish_loads(gib)
        worker = next(worker for worker in self.alive() if worker.open)
        await self.answer(worker)
        await request
        return worker

    def states(self):
        return {row.id: row.state for row in self.pool.rows()}


async def settle():
    """Let everything run that can run without time passing."""
    for _ in range(25):
        await asyncio.sleep(0)
