"""v1's downloads, by the real daemon from a hub of our own; answers held to schemas from the documentation."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lmd.api.lmstudio.v1 import job_of
from lmd.protocol import DownloadRow
from tests.conftest import MODELS, Daemon, StartDaemon
from tests.hub.fake_hub import FakeHub
from tests.lmd.api.wire import COUNT, SECONDS, TEXT, ask, obj, one_of, valid

TINY = (MODELS / "tiny-chat.gguf").read_bytes()
MOMENT = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$"}
STATUS = one_of("downloading", "paused", "completed", "failed")
STARTED = obj(
    {"job_id": TEXT, "status": STATUS, "total_size_bytes": COUNT, "started_at": MOMENT}, {"completed_at": MOMENT}
)
REFUSED = obj({"error": obj(
    {"message": TEXT, "type": one_of("invalid_request", "model_not_found")}, {"code": TEXT, "param": TEXT},
)})  # fmt: skip
ALREADY = obj({"status": one_of("already_downloaded")})
JOB = obj(
    {"job_id": TEXT, "status": STATUS},
    {"bytes_per_second": SECONDS, "estimated_completion": MOMENT, "completed_at": MOMENT, "total_size_bytes": COUNT,
     "downloaded_bytes": COUNT, "started_at": MOMENT},
)  # fmt: skip


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub().running() as running:
        running.add("lab/tiny-GGUF", {"tiny-Q8_0.gguf": TINY})
        yield running


@pytest.fixture
async def lmd(hub: FakeHub, start_daemon: StartDaemon) -> AsyncIterator[Daemon]:
    environ = {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "3", "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}
    daemon = await asyncio.to_thread(start_daemon, "[models]\nstandby = false\n", models=[], environ=environ)
    yield daemon
    await asyncio.to_thread(daemon.stop)


async def call(lmd: Daemon, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    status, text = await asyncio.to_thread(ask, lmd.url, method, f"/api/v1/models/{path}", body)
    return status, json.loads(text)


async def test_a_model_is_fetched_and_how_far_it_is_can_be_asked(hub: FakeHub, lmd: Daemon) -> None:
    hub.hold = asyncio.Event()
    status, job = await call(lmd, "POST", "download", {"model": f"{hub.url}/lab/tiny-GGUF", "quantization": "Q8_0"})
    assert status == 200
    assert valid(job, STARTED)["status"] == "downloading"
    assert job["total_size_bytes"] == len(TINY)
    await hub.held.wait()
    where = f"download/status/{job['job_id']}"
    assert valid((await call(lmd, "GET", where))[1], JOB)["status"] == "downloading"
    # The same again is the same job.
    assert (await call(lmd, "POST", "download", {"model": "lab/tiny-GGUF"}))[1]["job_id"] == job["job_id"]
    hub.hold.set()
    while (found := valid((await call(lmd, "GET", where))[1], JOB))["status"] == "downloading":
        pass
    assert (found["status"], found["downloaded_bytes"]) == ("completed", len(TINY))
    assert found["completed_at"] >= found["started_at"]
    assert valid((await call(lmd, "POST", "download", {"model": "lab/tiny-GGUF"}))[1], ALREADY)
    _, models = await asyncio.to_thread(ask, lmd.url, "GET", "/api/v1/models")
    assert [model["key"] for model in json.loads(models)["models"]] == ["lab/tiny-GGUF"]


async def test_what_the_hub_does_not_have_is_told(hub: FakeHub, lmd: Daemon) -> None:
    for body in ({"model": "lab/nothing"}, {"model": "lab/tiny-GGUF", "quantization": "Q2_K"}):
        status, said = await call(lmd, "POST", "download", body)
        assert status == 404
        valid(said, REFUSED)


@pytest.mark.parametrize(
    ("state", "status"),
    [("queued", "downloading"), ("waiting", "downloading"), ("verifying", "downloading"), ("paused", "paused"),
     ("completed", "completed"), ("failed", "failed"), ("cancelled", "failed")],
)  # fmt: skip
def test_every_state_has_a_status(state: str, status: str) -> None:
    row = DownloadRow(id="d1", model="a/b", quantization="Q8_0", state=state, size=10, rate=2.0, eta=3.0)
    row.created_at, row.finished_at = 1.0, 2.0
    job = valid(job_of(row, 100.0), JOB)
    assert job["status"] == status
    assert ("completed_at" in job) == (state == "completed")
    assert job.get("estimated_completion") == ("1970-01-01T00:01:43.000Z" if status == "downloading" else None)
