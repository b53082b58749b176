import pytest

from lmd.worker.child import _environment


def test_a_worker_gets_no_socket_of_systemd_and_what_the_operator_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    environment = _environment()
    assert "NOTIFY_SOCKET" not in environment
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
