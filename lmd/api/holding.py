"""An instance held for a request that is answered in one piece (what streams goes through `lmd.api.generate`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from lmd.api.activity import current_record
from lmd.api.served import Served, find_served
from lmd.generation import GenerationRequest, RawPrompt

if TYPE_CHECKING:
    from lmd.api.services import Services
    from lmd.pool.lease import Lease


def served_by(services: Services, model: str, ttl: float | None = None) -> Served:
    """What serves the name ``model``, noted in the request's record. Raises as `find_served` does, and Draining."""
    services.activity.refuse_if_draining()
    served = find_served(services, GenerationRequest(model=model, prompt=RawPrompt(), ttl=ttl))
    record = current_record()
    if record is not None:
        record.model, record.preset = served.name, served.preset
    return served


@asynccontextmanager
async def holding(services: Services, served: Served) -> AsyncIterator[Lease]:
    """Find or load the instance and hold it to the end of the block. Raises as `Pool.lease` does."""
    record = current_record()
    with services.activity.request():
        async with services.pool.lease(served.wanted) as lease:
            if record is not None:
                record.instance = lease.instance_id
                record.waited = lease.waited
            yield lease
