"""Random operations against the pool, with a fake clock and fake workers, and what must hold after each of them."""

import asyncio
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from lmd.errors import InsufficientMemory, LmdError
from lmd.pool.eviction import Rules
from lmd.pool.memory import MIB, PROCESS_BYTES
from lmd.pool.wanted import Origin
from lmd.worker.messages import Finished
from tests.lmd.pool.rig import GIB, SAY, Rig, settle, want

SIZES = {"a": 6.0, "b": 5.0, "c": 1.0, "d": 2.0, "huge": 20.0}
NAMES = st.sampled_from(sorted(SIZES))
RIVALS = [("a", "b"), ("b", "a")]
"""Models that do not fit into memory together."""
RESIDENCY = Rules().residency
QUEUE_TIMEOUT = 100.0
VERSIONS = st.sampled_from([None, 64, 128])
TTLS = st.sampled_from([0.0, 1.0, 60.0, None])


@dataclass
class Client:
    name: str
    answers: int = 0
    error: LmdError | None = None
    worker: object = None
    """Whose answer it is reading: it holds a lease."""
    leased: bool = False
    """It has had its lease, and nothing but what sets `may_fail` may end that."""
    may_fail: bool = False
    """Its worker was killed, or its instance ended by force."""
    left: bool = False
    task: asyncio.Task = field(default=None)


class PoolMachine(RuleBasedStateMachine):
    operations = 0
    """Done by all machines together."""

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clients = []
        self.versions = dict.fromkeys(SIZES, None)
        self.loads = []
        self.unloads = []
        self.faults = []
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(context))
        self.rig = self.run(self.make())

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def do(self, operation):
        PoolMachine.operations += 1
        self.run(operation)

    async def make(self):
        rig = Rig(stops_at_once=False, standby=True, parks=True, parked=1, queue_timeout=QUEUE_TIMEOUT)
        return await rig.start()

    def wanted(self, name, **options):
        return want(name, SIZES[name], context_length=self.versions[name], **options)

    # ── operations ────────────────────────────────────────────────────────────────────────────

    @rule(name=NAMES, ttl=TTLS, burst=st.integers(1, 3))
    def requests(self, name, ttl, burst):
        async def operation():
            for _ in range(burst):
                await self.ask(name, ttl)

        self.do(operation())

    async def serve(self, client, wanted):
        try:
            async with self.rig.pool.lease(wanted) as lease:
                answer = lease.generate(SAY)
                client.leased = True
                client.worker = next((w for w in self.rig.workers if answer in w.open.values()), None)
                async for item in answer:
                    if isinstance(item, Finished):
                        client.answers += 1
        except LmdError as error:
            client.error = error
            client.answers += 1
        finally:
            client.worker = None

    @rule(pair=st.sampled_from(RIVALS), gives_up=st.sampled_from(["", "client", "timeout", "unload"]))
    def one_is_asked_for_while_another_waits_for_its_memory(self, pair, gives_up):
        """A request that comes after the other one queues for a second load, and goes back where that gives up."""
        held, other = pair

        async def operation():
            await self.ask(held)
            for worker in self.rig.loading():
                self.rig.finish(worker, self.size_of(worker))
            await self.rig.advance(RESIDENCY + 0.5)
            rival = await self.ask(other)
            await self.rig.advance(1.0)
            await self.ask(held)
            if gives_up == "client":
                rival.left = True
                rival.task.cancel()
            elif gives_up == "timeout":
                await self.rig.advance(QUEUE_TIMEOUT - 0.5)
            elif gives_up == "unload":
                for row in self.rig.pool.rows():
                    if row.id == other and row.state == "starting":
                        self.unloads.append(asyncio.ensure_future(self.quietly(self.rig.pool.unload(other, True))))
            await settle()

        self.do(operation())

    async def ask(self, name, ttl=60.0):
        client = Client(name)
        client.task = asyncio.ensure_future(self.serve(client, self.wanted(name, ttl=ttl)))
        self.clients.append(client)
        await settle()
        return client

    @precondition(lambda self: self.open_clients())
    @rule(data=st.data())
    def a_client_leaves(self, data):
        client = data.draw(st.sampled_from(self.open_clients()), label="client")

        async def operation():
            client.left = True
            client.task.cancel()
            await settle()

        self.do(operation())

    @rule(seconds=st.sampled_from([0.01, 0.06, 1.0, 3.5, 30.0, 61.0, 400.0]))
    def time_passes(self, seconds):
        self.do(self.rig.advance(seconds))

    @precondition(lambda self: self.rig.loading())
    @rule()
    def all_loads_end_well(self):
        async def operation():
            for worker in self.rig.loading():
                self.rig.finish(worker, self.size_of(worker))
            await settle()

        self.do(operation())

    @precondition(lambda self: self.ending())
    @rule()
    def all_processes_end(self):
        async def operation():
            for worker in self.ending():
                worker.let_stop()
            await settle()

        self.do(operation())

    @precondition(lambda self: self.rig.loading())
    @rule(data=st.data(), good=st.integers(0, 3))
    def a_load_ends(self, data, good):
        worker = data.draw(st.sampled_from(self.rig.loading()), label="worker")

        async def operation():
            if good:
                self.rig.finish(worker, self.size_of(worker))
            else:
                worker.fail_load()
            await settle()

        self.do(operation())

    @precondition(lambda self: self.serving())
    @rule(data=st.data())
    def answers_end(self, data):
        worker = data.draw(st.sampled_from(self.serving()), label="worker")
        self.do(self.rig.answer(worker))

    @precondition(lambda self: self.rig.alive())
    @rule(data=st.data(), seldom=st.integers(0, 3))
    def a_worker_is_killed(self, data, seldom):
        if seldom:
            return
        worker = data.draw(st.sampled_from(self.rig.alive()), label="worker")

        async def operation():
            for client in self.clients:
                client.may_fail |= client.worker is worker
            worker.die()
            await settle()

        self.do(operation())

    @precondition(lambda self: self.ending())
    @rule(data=st.data())
    def a_process_ends(self, data):
        worker = data.draw(st.sampled_from(self.ending()), label="worker")

        async def operation():
            worker.let_stop()
            await settle()

        self.do(operation())

    @rule(name=NAMES, ttl=TTLS, reload=st.booleans(), pinned=st.booleans())
    def load(self, name, ttl, reload, pinned):
        async def operation():
            wanted = self.wanted(name, ttl=ttl, pinned=pinned, origin=Origin.EXPLICIT)
            self.loads.append(asyncio.ensure_future(self.quietly(self.rig.pool.load(wanted, reload=reload))))
            await settle()

        self.do(operation())

    @precondition(lambda self: self.rig.pool.rows())
    @rule(data=st.data(), version=VERSIONS)
    def load_in_place_of_another(self, data, version):
        name = data.draw(st.sampled_from([row.model for row in self.rig.pool.rows()]), label="name")

        async def operation():
            wanted = want(name, SIZES[name], context_length=version, origin=Origin.EXPLICIT)
            self.loads.append(asyncio.ensure_future(self.quietly(self.rig.pool.load(wanted, reload=True))))
            await settle()

        self.do(operation())

    @precondition(lambda self: self.rig.pool.rows())
    @rule(data=st.data(), force=st.booleans())
    def unload(self, data, force):
        id = data.draw(st.sampled_from([row.id for row in self.rig.pool.rows()]), label="id")

        async def operation():
            if force:
                for client in self.clients:
                    client.may_fail |= client.worker is not None and client.worker.name == id
            self.unloads.append(asyncio.ensure_future(self.quietly(self.rig.pool.unload(id, force))))
            await settle()

        self.do(operation())

    @rule(name=NAMES, version=VERSIONS)
    def a_preset_is_edited(self, name, version):
        async def operation():
            self.versions[name] = version
            self.rig.pool.mark_stale(name, self.wanted(name))
            await settle()

        self.do(operation())

    @rule(name=NAMES)
    def a_preset_is_deleted(self, name):
        async def operation():
            self.rig.pool.mark_stale(name, None)
            await settle()

        self.do(operation())

    async def quietly(self, operation):
        try:
            await operation
        except LmdError:
            pass

    # ── what is where ─────────────────────────────────────────────────────────────────────────

    def open_clients(self):
        return [client for client in self.clients if not client.task.done()]

    def serving(self):
        return [worker for worker in self.rig.alive() if worker.open]

    def ending(self):
        return [worker for worker in self.rig.alive() if worker.ending]

    @staticmethod
    def size_of(worker):
        return SIZES[worker.request.path.removeprefix("/models/").removesuffix(".gguf")]

    # ── what must hold ────────────────────────────────────────────────────────────────────────

    @invariant()
    def no_leased_instance_is_ended(self):
        for client in self.clients:
            assert client.worker is None or client.may_fail or not client.worker.ending, client.name
            assert not (client.leased and client.error) or client.may_fail, f"{client}: {client.error}"

    @invariant()
    def every_answer_is_by_the_model_that_was_asked_for(self):
        for client in self.clients:
            assert client.worker is None or client.worker.request.path == f"/models/{client.name}.gguf"

    @invariant()
    def workers_hold_what_their_instances_say(self):
        for instance in self.rig.pool._instances:
            if instance.worker is not None and instance.worker.request is not None:
                assert instance.worker.request.path == instance.key.path
                assert instance.worker.request.params == instance.key.load

    @invariant()
    def every_lease_is_that_of_a_request(self):
        for instance in self.rig.pool._instances:
            assert instance.state != "ready" or not instance.waiters, instance.id
            reading = sum(client.worker is instance.worker for client in self.clients if client.worker is not None)
            assert instance.leases == len(instance.waiters) + reading, instance.id
        open_loads = sum(not task.done() for task in self.loads)
        assert self.rig.pool.active_leases == len(self.open_clients()) + open_loads

    @invariant()
    def only_what_can_never_fit_is_refused_for_its_size(self):
        for client in self.clients:
            assert not isinstance(client.error, InsufficientMemory) or client.name == "huge"

    @invariant()
    def nothing_went_wrong_unheard(self):
        assert self.faults == []
        assert not [task for task in (*self.loads, *self.unloads) if task.done() and task.exception()]

    @invariant()
    def no_request_is_answered_twice_or_lost(self):
        for client in self.clients:
            assert client.answers <= 1
            if client.task.done() and not client.left:
                assert client.answers == 1, f"{client} ended without an answer"

    @invariant()
    def memory_is_that_of_the_live_instances(self):
        holding = [w for w in self.rig.alive() if w.request is not None and not w.parked]
        promised = sum(int(self.size_of(w) * GIB) for w in holding)
        assert abs(self.rig.pool.memory_used - promised) <= MIB
        assert promised <= self.rig.ram + PROCESS_BYTES

    @invariant()
    def no_more_workers_are_parked_than_may_be(self):
        parked = [worker for worker in self.rig.alive() if worker.parked and not worker.ending]
        assert len(parked) <= 1
        assert not parked or not self.rig.pool.is_empty

    @invariant()
    def no_weights_are_in_memory_twice(self):
        ready = [instance.key for instance in self.rig.pool._instances if instance.state == "ready"]
        reloading = {i.replaces for i in self.rig.pool._instances if i.replaces is not None}
        retiring = [i.key for i in self.rig.pool._instances if i.retiring]
        assert len(ready) - len(set(ready)) <= len(retiring) + len(reloading)

    def teardown(self):
        self.run(self.drain_everything())
        self.loop.close()

    async def drain_everything(self):
        """Let every load and answer come to its end: then everybody has been served and everything leaves."""
        for _ in range(400):
            if not self.open_clients() and all(task.done() for task in (*self.loads, *self.unloads)):
                break
            for worker in self.ending():
                worker.let_stop()
            await settle()
            for worker in self.rig.loading():
                self.rig.finish(worker, self.size_of(worker))
            await settle()
            for worker in self.serving():
                await self.rig.answer(worker)
            await self.rig.advance(1.0)
        assert self.open_clients() == []
        assert all(task.done() for task in (*self.loads, *self.unloads))
        self.no_request_is_answered_twice_or_lost()
        assert self.rig.pool.active_leases == 0
        unloading = asyncio.ensure_future(self.rig.pool.unload_all())
        await settle()
        for worker in self.ending():
            worker.let_stop()
        await unloading
        await settle()  # those that were ending before that, too
        assert self.rig.pool.memory_used == 0
        assert len(self.rig.alive()) <= 1  # the standby
        stopping = asyncio.ensure_future(self.rig.pool.stop())
        await settle()
        for worker in self.ending():
            worker.let_stop()
        await stopping
        assert self.rig.alive() == []
        assert len(asyncio.all_tasks()) == 1


def test_whatever_happens_to_the_pool():
    PoolMachine.operations = 0
    run_state_machine_as_test(
        PoolMachine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        ),
    )
    assert PoolMachine.operations >= 2000
