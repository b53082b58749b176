"""Whose address may manage models. (Switching it off, proxies: lmstudio/test_faults.py, over HTTP.)"""

from types import SimpleNamespace
from typing import Any

import pytest

from lmd.api.management import require_management
from lmd.api.services import SERVICES
from lmd.errors import Forbidden


class Request(dict[Any, Any]):
    """As much of a request as is looked at: test clients have no other address than loopback."""

    def __init__(self, remote: str | None, management: object, **headers: str) -> None:
        super().__init__()
        self.remote, self.headers, self.transport = remote, headers, None
        settings = SimpleNamespace(server=SimpleNamespace(management=management))
        services = SimpleNamespace(config=SimpleNamespace(snapshot=SimpleNamespace(settings=settings)))
        self.config_dict = {SERVICES: services}


def may(request: Any) -> bool:
    try:
        require_management(request)
    except Forbidden:
        return False
    return True


@pytest.mark.parametrize(
    ("remote", "local"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("10.0.0.5", False),
        ("192.0.2.1", False),
        ("::ffff:192.0.2.1", False),
        ("fe80::1", False),
        ("", False),
        (None, False),
    ],
)
def test_by_default_only_loopback_addresses_may(remote: str | None, local: bool) -> None:
    assert may(Request(remote, "local")) is local
    assert may(Request(remote, True))
    assert not may(Request(remote, False))
