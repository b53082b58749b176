"""The bag of everything that a request may need, put together once by the daemon."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from lmd.api.activity import Activity
from lmd.api.metrics import Metrics
from lmd.api.watchers import Watchers

if TYPE_CHECKING:
    from lmd.config.store import ConfigStore, Reloaded
    from lmd.conversations import Conversations
    from lmd.library.catalog import Catalog
    from lmd.library.downloads import Downloads
    from lmd.pool.pool import Pool
    from lmd.tokens import Tokens


@dataclass(kw_only=True)
class Services:
    """One for the whole process; the TCP app and the control app hold the same."""

    config: ConfigStore
    catalog: Catalog
    pool: Pool
    downloads: Downloads
    conversations: Conversations
    tokens: Tokens
    reload: Callable[[], Awaitable[Reloaded]]
    """Read the operator's files anew and apply what changed; how SIGHUP and ``POST /reload`` are one thing."""
    activity: Activity = field(default_factory=Activity)
    metrics: Metrics = field(default_factory=Metrics)
    watchers: Watchers = field(default_factory=Watchers)
    started_at: float = field(default_factory=time.time)
    url: str = ""
    """Where the HTTP port really is; empty until it listens."""
    socket: str = ""
    keep_alive_seconds: float = 5.0
    """A stream that has been silent for so long gets a comment line. Until the first one (or the first token),
    an error is still a plain HTTP error with its status."""


SERVICES: web.AppKey[Services] = web.AppKey("services", Services)


def services_of(request: web.Request) -> Services:
    return request.config_dict[SERVICES]
