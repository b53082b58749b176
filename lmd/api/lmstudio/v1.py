"""LM Studio's v1: models listed, loaded, unloaded and fetched. Its chat is in `lmd.api.lmstudio.chat`."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

import msgspec
from aiohttp import web

from lmd.api.body import read_body
from lmd.api.completions.shapes import OpenAIError
from lmd.api.lmstudio.body import ChatBody, DownloadBody, LoadBody, UnloadBody
from lmd.api.lmstudio.chat import chat
from lmd.api.lmstudio.models import config_of, type_of, v1_models
from lmd.api.lmstudio.shapes import ChatResult, DownloadJob, Error, Greeting, Loaded, Unloaded, V1Models
from lmd.api.management import require_management
from lmd.api.middleware import json_body
from lmd.api.openapi import Operation
from lmd.api.served import explicit_load
from lmd.api.services import Services, services_of
from lmd.api.ttl import ttl_of
from lmd.errors import Unsupported
from lmd.loading import LoadParams

if TYPE_CHECKING:
    from lmd.pool.wanted import ModelFiles
    from lmd.protocol import DownloadRow


def routes() -> Sequence[web.RouteDef]:
    return [
        web.get("/lmstudio-greeting", greeting),
        web.get("/api/v1/models", list_models),
        web.post("/api/v1/models/load", load),
        web.post("/api/v1/models/unload", unload),
        web.post("/api/v1/models/download", download),
        web.get("/api/v1/models/download/status/{job_id}", download_status),
        web.post("/api/v1/chat", chat),
    ]


OPERATIONS = (
    Operation(
        method="GET", path="/lmstudio-greeting", summary="Tell that this server speaks LM Studio's API",
        answer=Greeting, error=OpenAIError,
    ),
    Operation(
        method="GET", path="/api/v1/models", summary="List models with what runs of them",
        answer=V1Models, error=Error,
    ),
    Operation(
        method="POST", path="/api/v1/models/load", summary="Load a model",
        body=LoadBody, answer=Loaded, error=Error,
    ),
    Operation(
        method="POST", path="/api/v1/models/unload", summary="Unload an instance",
        body=UnloadBody, answer=Unloaded, error=Error,
    ),
    Operation(
        method="POST", path="/api/v1/models/download", summary="Fetch a model from the hub",
        body=DownloadBody, answer=DownloadJob, error=Error, statuses=(502, 507),
    ),
    Operation(
        method="GET", path="/api/v1/models/download/status/{job_id}", summary="How far a download is",
        answer=DownloadJob, error=Error, parameters={"job_id": "As the download's start told it."},
    ),
    Operation(
        method="POST", path="/api/v1/chat", summary="Go on with a conversation that the server keeps",
        body=ChatBody, answer=ChatResult, error=Error, streams=True,
    ),
)  # fmt: skip


def _json(value: object) -> web.Response:
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


async def greeting(_: web.Request) -> web.Response:
    """How LM Studio's own clients find a server."""
    return _json({"lmstudio": True})


async def list_models(request: web.Request) -> web.Response:
    return _json({"models": await v1_models(services_of(request))})


# ── in memory ─────────────────────────────────────────────────────────────────────────────────


async def load(request: web.Request) -> web.Response:
    """Loads and leaves it loaded (without ``ttl``), also when the caller has left meanwhile."""
    require_management(request)
    said = read_body(LoadBody, await json_body(request))
    services = services_of(request)
    services.activity.refuse_if_draining()
    params = LoadParams(
        context_length=said.context_length, batch=said.eval_batch_size, flash_attention=said.flash_attention
    )
    ttl = ttl_of(said.ttl)
    wanted = explicit_load(services, said.model, load=params, ttl=None if ttl == float("inf") else ttl, identifier=None)
    _refuse_unsupported(services, said, wanted.model)
    outcome = await services.pool.load(wanted)
    model = services.catalog.models.get(wanted.model.key)
    answer: Loaded = {
        "type": "llm" if model is None else type_of(model),
        "instance_id": outcome.instance.id,
        "load_time_seconds": outcome.seconds,
        "status": "loaded",
    }
    if said.echo_load_config and model is not None:
        answer["load_config"] = config_of(outcome.instance, model)
    return _json(answer)


def _refuse_unsupported(services: Services, said: LoadBody, model: ModelFiles) -> None:
    """Settings that would change nothing pass; those that would and cannot are refused."""
    experts = model.header.expert_used_count
    if said.num_experts is not None and experts and said.num_experts != experts:
        raise Unsupported(
            f"Another number of experts than the model's own ({experts}) is not implemented in this version of lmd.",
            hint="Leave 'num_experts' out.",
            param="num_experts",
        )
    facts = services.pool.facts
    has_gpu = facts is not None and any(device.kind in {"gpu", "igpu"} for device in facts.devices)
    if said.offload_kv_cache_to_gpu is False and has_gpu:
        raise Unsupported(
            "Keeping the KV cache of offloaded layers in RAM is not implemented in this version of lmd.",
            hint="Leave 'offload_kv_cache_to_gpu' out, or offload fewer layers with gpu_layers in a preset.",
            param="offload_kv_cache_to_gpu",
        )


async def unload(request: web.Request) -> web.Response:
    require_management(request)
    said = read_body(UnloadBody, await json_body(request))
    return _json({"instance_id": await services_of(request).pool.unload(said.instance_id)})


# ── from the hub ──────────────────────────────────────────────────────────────────────────────

_Status = Literal["downloading", "paused", "completed", "failed", "already_downloaded"]

_STATUS: Mapping[str, _Status] = {
    "queued": "downloading",
    "downloading": "downloading",
    "waiting": "downloading",
    "verifying": "downloading",
    "paused": "paused",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "failed",
}


async def download(request: web.Request) -> web.Response:
    require_management(request)
    said = read_body(DownloadBody, await json_body(request))
    services = services_of(request)
    services.activity.refuse_if_draining()
    row = await services.downloads.start(said.model, said.quantization)
    if row.already:
        return _json(DownloadJob(status="already_downloaded"))
    job = job_of(row, time.time())
    return _json({key: value for key, value in job.items() if key in _STARTED})


_STARTED = {"job_id", "status", "total_size_bytes", "started_at", "completed_at"}
"""What the answer to a new download has; the rest is the status's."""


async def download_status(request: web.Request) -> web.Response:
    row = services_of(request).downloads.find(request.match_info["job_id"])
    return _json(job_of(row, time.time()))


def job_of(row: DownloadRow, now: float) -> DownloadJob:
    job: DownloadJob = {
        "job_id": row.id,
        "status": _STATUS.get(row.state, "downloading"),
        "total_size_bytes": row.size,
        "downloaded_bytes": row.received,
        "started_at": _moment(row.created_at),
    }
    if job["status"] == "downloading":
        job["bytes_per_second"] = row.rate
        if row.eta is not None:
            job["estimated_completion"] = _moment(now + row.eta)
    if job["status"] == "completed" and row.finished_at:
        job["completed_at"] = _moment(row.finished_at)
    return job


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
