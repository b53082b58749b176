"""lmd.socket: lmd starts on first use, and leaves again when it is idle."""

from tests.systemd.conftest import SETTINGS, Box, eventually


def test_the_first_request_starts_lmd_and_is_answered(box: Box) -> None:
    box("systemctl", "enable", "--quiet", "--now", "lmd.socket")
    assert box.show("ActiveState") == "inactive"
    assert "1" in box.ask()
    assert box.show("ActiveState") == "active"


def test_the_first_lmctl_starts_it_too_for_the_group_alone(box: Box) -> None:
    box("systemctl", "start", "lmd.socket")
    stranger = ["runuser", "-u", "stranger", "--", "lmctl", "--socket", "/run/lmd/lmd.sock", "status"]
    assert box.run(*stranger).returncode == 3
    assert box.show("ActiveState") == "inactive"
    assert "serving" in box("runuser", "-u", "member", "--", "lmctl", "status")
    assert box.run(*stranger).returncode == 3


def test_after_a_stop_the_sockets_go_on_listening(box: Box) -> None:
    box("systemctl", "start", "lmd.socket")
    assert "serving" in box("lmctl", "status")
    box("systemctl", "stop", "lmd.service")
    assert "serving" in box("lmctl", "status")
    assert "tiny-chat" in [model["id"] for model in box.get("/v1/models")["data"]]


def test_it_leaves_when_idle_and_the_next_request_brings_it_back(box: Box) -> None:
    box.write("/etc/lmd/lmd.toml", SETTINGS + '[daemon]\nidle_exit = "1s"\n[models]\nttl = "1s"\n')
    box("systemctl", "start", "lmd.socket")
    assert "1" in box.ask()
    first = box.show("InvocationID")
    eventually(lambda: box.show("ActiveState") == "inactive")
    assert (box.show("Result"), box.show("NRestarts")) == ("success", "0")
    assert box.said("leaving: idle for 1s")
    assert "1" in box.ask()
    assert box.show("InvocationID") != first


def test_it_stays_while_a_stream_of_events_is_open(box: Box) -> None:
    box.write("/etc/lmd/lmd.toml", SETTINGS + '[daemon]\nidle_exit = "1s"\n[models]\nttl = "1s"\n')
    box("systemctl", "start", "lmd.socket")
    events, pid = box.start("curl", "-sS", "-N", "--unix-socket", "/run/lmd/lmd.sock", "http://lmd/events")
    assert events.stdout is not None
    eventually(lambda: box.show("ActiveState") == "active")
    main = box.show("MainPID")
    assert "1" in box.ask()
    for line in events.stdout:  # the model has left, which the stream itself tells
        if '"gone":true' in line.replace(" ", ""):
            break
    since = int(box.show("WatchdogTimestampMonotonic"))
    eventually(lambda: int(box.show("WatchdogTimestampMonotonic")) > since + 3_000_000)
    assert box.show("MainPID") == main
    box("kill", pid)
    eventually(lambda: box.show("ActiveState") == "inactive")


def test_without_the_socket_it_stays_and_says_so(box: Box) -> None:
    box.write("/etc/lmd/lmd.toml", SETTINGS + '[daemon]\nidle_exit = "1s"\n')
    box("systemctl", "start", "lmd.service")
    eventually(lambda: box.said("idle_exit has no effect"))
    assert box.show("ActiveState") == "active"
