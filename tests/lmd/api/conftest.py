"""The HTTP applications in this process, on real sockets, with workers that do what the test says."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from lmd.api.app import client_app, control_app
from lmd.api.services import Services
from lmd.config.store import ConfigStore, Reloaded
from lmd.conversations import Conversations
from lmd.library.catalog import Catalog
from lmd.library.downloads import Downloads
from lmd.library.hub import Hub
from lmd.library.repository import Room
from lmd.library.transfer import Pace
from lmd.pool.pool import Pool
from lmd.tokens import Tokens
from lmd.worker.fake import FakeWorker

MODELS = Path(__file__).parents[2] / "models"

Client = TestClient[web.Request, web.Application]


@dataclass
class Stack:
    """``client`` speaks to the HTTP port, ``control`` to what the control socket serves."""

    services: Services
    client: Client
    control: Client
    workers: list[FakeWorker] = field(default_factory=list)

    async def loading(self) -> FakeWorker:
        """The worker that has been asked to load."""
        async with asyncio.timeout(10):
            while True:
                for worker in self.workers:
                    if worker.is_loading:
                        return worker
                await asyncio.sleep(0)

    @property
    def loaded(self) -> list[FakeWorker]:
        """Workers that have a model; the pool keeps others in reserve."""
        return [worker for worker in self.workers if worker.request is not None]

    async def generating(self, worker: FakeWorker, count: int = 1) -> list[int]:
        """Ids of the sequences that ``worker`` computes, once there are ``count``."""
        async with asyncio.timeout(10):
            while len(worker.open) < count:  # noqa: ASYNC110 - the fake tells nobody
                await asyncio.sleep(0)
        return list(worker.open)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    for name in ("models", "presets"):
        (tmp_path / name).mkdir()
    shutil.copy(MODELS / "tiny-chat.gguf", tmp_path / "models" / "tiny.gguf")
    (tmp_path / "lmd.toml").write_text(
        f'[paths]\nmodels = ["{tmp_path}/models"]\npresets = "{tmp_path}/presets"\n[models]\nstandby = false\n'
    )
    config = ConfigStore(tmp_path / "lmd.toml", environ={})
    catalog = Catalog(config.snapshot.settings.paths.models)
    await asyncio.to_thread(catalog.refresh)
    workers: list[FakeWorker] = []

    async def spawn() -> FakeWorker:
        workers.append(FakeWorker())
        return workers[-1]

    async def reload() -> Reloaded:
        return await config.reload()

    pool = Pool(lambda: config.snapshot.settings.models, spawn=spawn)
    conversations = Conversations(tmp_path / "conversations.db", lambda: config.snapshot.settings.conversations)

    async def arrived(files: Sequence[Path]) -> str:
        await catalog.update()
        return next((key for key, model in catalog.models.items() if set(model.parts) & set(files)), "")

    downloads = Downloads(
        tmp_path / "models",
        tmp_path / "downloads.json",
        Hub({"HF_ENDPOINT": "http://127.0.0.1:9"}),  # nobody there: a test that downloads sets its own
        room=lambda: Room(1 << 40, 1 << 40),
        arrived=arrived,
        pace=Pace(stall=5.0, first=0.01, longest=0.05, tries=3),
    )
    services = Services(
        config=config,
        catalog=catalog,
        pool=pool,
        downloads=downloads,
        conversations=conversations,
        tokens=Tokens(tmp_path / "tokens.json", {}),
        reload=reload,
    )
    await downloads.open()
    await pool.start()
    clients = []
    for app in (client_app(services, lambda: {"127.0.0.1"}), control_app(services)):
        clients.append(TestClient(TestServer(app)))  # with handler_cancellation, as the daemon has it
        await clients[-1].start_server()
    try:
        yield Stack(services, clients[0], clients[1], workers)
    finally:
        await downloads.close()
        await pool.stop()
        await conversations.close()
        for client in clients:
            await client.close()
