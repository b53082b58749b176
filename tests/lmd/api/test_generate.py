"""The path from a request to its events, ended at every moment."""

import asyncio
from contextlib import aclosing, suppress
from typing import Any

import pytest

from lmd.api.generate import Generation
from lmd.generation import GenerationRequest, RawPrompt

REQUEST = GenerationRequest(model="tiny", prompt=RawPrompt(text="Once"))


@pytest.mark.parametrize("between", [1, 2, 3])
async def test_a_request_that_is_cancelled_twice_keeps_no_lease(stack: Any, between: int) -> None:
    """As aiohttp does it: the write fails, and when the request is already on its way out the connection is lost."""

    async def consume() -> None:
        async with aclosing(Generation(stack.services, REQUEST).events()) as events:
            async for _ in events:
                pass

    first = asyncio.create_task(consume())
    worker = await stack.loading()
    worker.finish_load()
    (sequence,) = await stack.generating(worker)
    worker.answer(sequence, "the end")
    await first

    for moment in range(30):
        task = asyncio.create_task(consume())
        for turn in range(moment):
            await asyncio.sleep(0)
            if turn == moment // 2:
                for sequence in list(worker.open):
                    worker.answer(sequence, "the end")
        task.cancel()
        for _ in range(between):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert stack.services.pool.active_leases == 0, f"cancelled after {moment} turns of the loop"
