"""Which instance serves a request, and with which settings."""

import asyncio
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmd.api.served import explicit_load, find_served
from lmd.errors import Conflict, InvalidRequest
from lmd.generation import GenerationRequest, RawPrompt
from lmd.loading import LoadParams

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture
async def services(stack: Any, tmp_path: Path) -> Any:
    shutil.copy(MODELS / "tiny-draft.gguf", tmp_path / "models" / "draft.gguf")
    await asyncio.to_thread(stack.services.catalog.refresh)
    return stack.services


async def hold(stack: Any, wanted: Any) -> None:
    """Have it in memory."""
    asking = asyncio.create_task(stack.services.pool.acquire(wanted))
    (await stack.loading()).finish_load()
    (await asking).close()


def asked(**fields: Any) -> GenerationRequest:
    return GenerationRequest(model="tiny", prompt=RawPrompt(), **fields)


async def test_a_draft_in_a_request_keeps_what_the_instance_was_loaded_with(stack: Any, services: Any) -> None:
    own = LoadParams(context_length=2048)
    await hold(stack, explicit_load(services, "tiny", load=own, ttl=None, identifier=None))
    wanted = find_served(services, asked(draft_model="draft")).wanted
    assert wanted.draft is not None and wanted.draft.key == "draft"
    assert (wanted.load.context_length, wanted.load.draft_model) == (2048, "draft")


async def test_without_jit_what_is_loaded_with_the_draft_serves(stack: Any, services: Any, tmp_path: Path) -> None:
    await hold(stack, find_served(services, asked()).wanted)
    await hold(stack, find_served(services, asked(draft_model="draft")).wanted)
    config = tmp_path / "lmd.toml"
    config.write_text(config.read_text() + "jit = false\n")
    await services.config.reload()
    assert services.pool.holds(find_served(services, asked(draft_model="draft")).wanted)
    with pytest.raises(Conflict):
        find_served(services, asked(draft_model="draft", context_length=100_000))


async def test_a_draft_that_does_not_fit_is_the_requests_mistake_each_time(stack: Any, services: Any) -> None:
    wanted = find_served(services, asked(draft_model="draft")).wanted
    asking = asyncio.create_task(services.pool.acquire(wanted))
    (await stack.loading()).fail_load(InvalidRequest("vocabularies differ", param="draft_model"))
    for waiting in (asking, services.pool.acquire(wanted), services.pool.acquire(wanted)):
        with pytest.raises(InvalidRequest) as caught:
            await waiting
        assert caught.value.param == "draft_model"
    assert services.pool.rows() == []


async def test_no_request_pins_what_it_has_loaded(services: Any) -> None:
    wanted = find_served(services, asked(ttl=math.inf)).wanted
    assert (wanted.ttl, wanted.pinned) == (None, False)
