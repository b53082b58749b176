import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from lmd.api.listen import CannotListen, ControlSocket, bind_http, bound_hosts, is_exposed, url_of
from lmd.errors import Conflict


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory whose paths fit a socket's address."""
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


def test_port_0_is_a_port_that_can_be_told() -> None:
    sockets = bind_http("127.0.0.1", 0)
    try:
        port = sockets[0].getsockname()[1]
        assert url_of(sockets) == f"http://127.0.0.1:{port}"
        assert port > 0
    finally:
        for one in sockets:
            one.close()


def test_all_addresses_of_a_name_share_the_port() -> None:
    sockets = bind_http("localhost", 0)
    try:
        assert len({one.getsockname()[1] for one in sockets}) == 1
        assert bound_hosts(sockets) <= {"127.0.0.1", "::1"}
    finally:
        for one in sockets:
            one.close()


def test_a_wildcard_is_told_as_an_address_that_can_be_reached() -> None:
    (one,) = bind_http("0.0.0.0", 0)
    with one:
        assert url_of([one]).startswith("http://127.0.0.1:")


def test_a_port_in_use_says_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as caught:
            bind_http("127.0.0.1", port)
    assert str(port) in caught.value.message
    assert "in use" in caught.value.message
    assert "--port 0" in (caught.value.hint or "")


def test_an_address_of_another_machine_is_refused() -> None:
    with pytest.raises(CannotListen) as caught:
        bind_http("192.0.2.1", 0)
    assert "192.0.2.1" in caught.value.message


def test_mode_applies_and_the_socket_goes_with_its_owner(short: Path) -> None:
    path = short / "run" / "lmd.sock"
    control = ControlSocket(path, 0o660, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
    control.close()
    assert list(short.iterdir()) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file away")
def test_group_applies(short: Path) -> None:
    control = ControlSocket(short / "s", 0o660, "daemon")
    assert (short / "s").stat().st_gid == 1
    control.close()


def test_an_unknown_group_is_named(short: Path) -> None:
    with pytest.raises(CannotListen) as caught:
        ControlSocket(short / "s", 0o660, "no-such-group")
    assert "no-such-group" in caught.value.message
    assert list(short.iterdir()) == []


def test_the_socket_of_a_dead_daemon_is_replaced(short: Path) -> None:
    path = short / "s"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    control = ControlSocket(path, 0o600, "")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
    control.close()


def test_a_live_daemon_is_left_alone(short: Path) -> None:
    path = short / "s"
    first = ControlSocket(path, 0o600, "")
    with pytest.raises(Conflict) as caught:
        ControlSocket(path, 0o600, "")
    assert str(path) in caught.value.message
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(os.fspath(path))
    first.close()


def test_a_file_that_is_no_socket_is_kept(short: Path) -> None:
    path = short / "s"
    path.write_text("precious")
    with pytest.raises(CannotListen):
        ControlSocket(path, 0o600, "")
    assert path.read_text() == "precious"


def test_closing_leaves_the_socket_of_a_successor(short: Path) -> None:
    path = short / "s"
    first = ControlSocket(path, 0o600, "")
    path.unlink()
    second = ControlSocket(path, 0o600, "")
    first.close()
    assert path.exists()
    second.close()
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_directory_that_everybody_may_write_to_is_refused(short: Path, mode: int) -> None:
    short.chmod(mode)
    with pytest.raises(CannotListen, match="writable for everybody"):
        ControlSocket(short / "lmd.sock", 0o660, "")
    assert list(short.iterdir()) == []


def test_what_others_can_reach_is_exposed() -> None:
    assert not is_exposed({"127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "/run/lmd/http.sock"})
    for host in ("0.0.0.0", "::", "192.168.0.7", "fe80::1%eth0", "::ffff:10.0.0.1"):
        assert is_exposed({"127.0.0.1", host})
