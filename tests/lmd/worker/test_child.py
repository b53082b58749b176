import pytest

from lmd.worker.child import _environment


def test_a_worker_gets_no_socket_of_systemd_and_the_operators_malloc_settings_before_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    environment = _environment()
    assert "NOTIFY_SOCKET" not in environment
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1:glibc.malloc.hugetlb=0"
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert _environment()["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
