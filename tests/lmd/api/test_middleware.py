import pytest

from lmd.api.middleware import host_allowed

LOOPBACK = frozenset({"127.0.0.1"})
EVERYWHERE = frozenset({"0.0.0.0"})


@pytest.mark.parametrize(
    "host",
    ["localhost", "localhost:1234", "LocalHost.", "app.localhost:1", "127.0.0.1:1234", "127.1.2.3", "[::1]:1234"],
)
def test_loopback_names_are_always_ours(host: str) -> None:
    assert host_allowed(host, LOOPBACK, ())


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:1234",
        "192.168.0.7",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "[",
        "[::1",
    ],
)
def test_a_rebound_name_is_not_ours(host: str) -> None:
    assert not host_allowed(host, LOOPBACK, ())


def test_any_address_reaches_a_wildcard_but_no_name_does() -> None:
    assert host_allowed("192.168.0.7:1234", EVERYWHERE, ())
    assert not host_allowed("evil.example", EVERYWHERE, ())


def test_listed_names_are_ours() -> None:
    assert host_allowed("Models.Example:1234", LOOPBACK, {"models.example"})
    assert host_allowed("anything", LOOPBACK, {"*"})
