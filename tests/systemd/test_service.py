"""lmd.service, started, reloaded, killed, hung and stopped by a real systemd."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.systemd.conftest import PRESET, Box, Installation, eventually


def test_enabled_it_starts_at_boot_and_now_and_status_tells_what_it_does(box: Box) -> None:
    box("systemctl", "enable", "--quiet", "--now", "lmd")
    assert box("systemctl", "is-enabled", "lmd").strip() == "enabled"
    assert "1" in box.ask()
    eventually(lambda: "1 models in memory, 0 requests open, 1 served" in box("systemctl", "status", "lmd"))
    assert box.show("User") == "lmd"
    assert box.show("Slice") == "lmd.slice"
    assert box.show("Result") == "success"


def test_a_reload_returns_when_the_new_preset_counts(box: Box) -> None:
    box("systemctl", "start", "lmd")
    main = box.show("MainPID")
    box.write("/etc/lmd/presets.d/counter.toml", PRESET)
    box("systemctl", "reload", "lmd")
    assert "counter" in [model["id"] for model in box.get("/v1/models")["data"]]
    assert box.show("MainPID") == main


def test_a_bad_reload_fails_says_why_and_leaves_the_last_good_preset_serving(box: Box) -> None:
    box.write("/etc/lmd/presets.d/counter.toml", PRESET)
    box("systemctl", "start", "lmd")
    main = box.show("MainPID")
    box.write("/etc/lmd/presets.d/counter.toml", PRESET.replace("temperature = 0", "temperature = 99"))
    assert box.run("systemctl", "reload", "lmd").returncode != 0
    lmctl = [str(r["MESSAGE"]) for r in box.journal() if r.get("SYSLOG_IDENTIFIER") == "lmctl"]
    assert any("counter.toml:3:" in line and "temperature" in line for line in lmctl)
    assert (box.show("MainPID"), box.show("ActiveState"), box.show("SubState")) == (main, "active", "running")
    assert box.ask("counter").startswith("1, 2, 3")


def test_a_killed_daemon_is_started_again_and_leaves_no_worker(box: Box) -> None:
    box("systemctl", "start", "lmd")
    stream = box.stream(6000)
    main, workers = box.show("MainPID"), box.workers()
    assert workers
    box("kill", "-KILL", main)
    eventually(lambda: box.show("MainPID") not in {main, "0"} and box.show("ActiveState") == "active")
    assert not any(box.alive(pid) for pid in workers)
    stream.communicate(timeout=30)  # reads on: it could not end with its pipe full
    assert stream.returncode != 0
    assert "1" in box.ask()


def test_a_killed_worker_costs_its_answers_only(box: Box) -> None:
    box("systemctl", "start", "lmd")
    main = box.show("MainPID")
    stream = box.stream(6000)
    (row,) = json.loads(box("lmctl", "ps", "--json"))
    daemon_oom, worker_oom = (int(box("cat", f"/proc/{pid}/oom_score_adj")) for pid in (main, row["pid"]))
    assert worker_oom > daemon_oom
    box("kill", "-KILL", str(row["pid"]))
    rest, _ = stream.communicate(timeout=30)
    assert '"code":"worker_died"' in rest.replace(" ", "")
    assert "1" in box.ask()
    assert box.show("MainPID") == main
    assert box.show("NRestarts") == "0"


HANGS_AT_SIGUSR1 = """\
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(3600))
"""


def test_a_hung_loop_is_ended_and_told_where_it_hung_and_a_hung_model_is_not(box: Box) -> None:
    box.write("/opt/hang/sitecustomize.py", HANGS_AT_SIGUSR1)
    box.drop_in("[Service]\nWatchdogSec=4\nEnvironment=PYTHONPATH=/opt/hang\n")
    box("systemctl", "start", "lmd")
    box.stream(6000)
    main, workers = box.show("MainPID"), box.workers()
    (row,) = json.loads(box("lmctl", "ps", "--json"))

    box("kill", "-STOP", str(row["pid"]))
    fed = int(box.show("WatchdogTimestampMonotonic"))
    eventually(lambda: int(box.show("WatchdogTimestampMonotonic")) > fed + 5_000_000)
    assert box.show("MainPID") == main

    box("kill", "-USR1", main)
    eventually(lambda: box.show("MainPID") not in {main, "0"} and box.show("ActiveState") == "active")
    assert not any(box.alive(pid) for pid in workers)
    assert box.said("Watchdog timeout")
    assert box.said("/opt/hang/sitecustomize.py")
    assert "1" in box.ask()


def test_a_stop_lets_an_open_stream_end(box: Box) -> None:
    box("systemctl", "start", "lmd")
    stream = box.stream(500)
    box("systemctl", "stop", "--no-block", "lmd")
    rest, _ = stream.communicate(timeout=60)
    assert rest.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"length"' in rest.replace(" ", "")
    eventually(lambda: box.show("ActiveState") == "inactive")
    assert (box.show("Result"), box.show("ExecMainStatus")) == ("success", "0")


def test_the_journal_has_fields_to_filter_by(box: Box) -> None:
    box.write("/etc/lmd/presets.d/counter.toml", PRESET)
    box("systemctl", "start", "lmd")
    box.ask("counter", request_id="from-the-test")
    query = ["journalctl", "-o", "json", "--no-pager", "REQUEST_ID=from-the-test", "LOGGER=lmd.access"]
    eventually(lambda: box(*query) != "")  # the line is written after the answer
    (record,) = (json.loads(line) for line in box(*query).splitlines())
    assert record["MODEL"] == record["PRESET"] == "counter"
    assert record["INSTANCE"] == "counter"
    assert record["STATUS"] == "200"
    assert record["_SYSTEMD_UNIT"] == "lmd.service"
    assert record["PRIORITY"] == "6"
    loaded = [r for r in box.journal() if r.get("INSTANCE") == "counter" and "is loaded" in str(r["MESSAGE"])]
    assert {r["MODEL"] for r in loaded} == {"tiny-chat"}


def test_lmctl_is_for_root_and_the_group(box: Box) -> None:
    box("systemctl", "start", "lmd")
    assert "serving" in box("lmctl", "status")
    assert "serving" in box("runuser", "-u", "member", "--", "lmctl", "status")
    refused = box.run("runuser", "-u", "stranger", "--", "lmctl", "--socket", "/run/lmd/lmd.sock", "status")
    assert refused.returncode == 3
    assert "lmd" in refused.stderr and "Traceback" not in refused.stderr


HUB = """\
import asyncio, pathlib
from tests.hub.fake_hub import FakeHub

async def main():
    async with FakeHub().running() as hub:
        model = pathlib.Path("/src/tests/models/tiny-chat.gguf").read_bytes()
        hub.add("lab/tiny-GGUF", {"tiny-Q8_0.gguf": model}, gated=True)
        print(hub.url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_a_gated_model_is_downloaded_with_a_credential_that_only_lmd_can_read(
    box: Box, installation: Installation
) -> None:
    hub, pid = box.start("env", "-C", "/src", f"{installation.environment}/bin/python3", "-c", HUB)
    assert hub.stdout is not None
    box.write("/etc/credstore/lmd.hf_token", "hf_right\n")
    box("chmod", "600", "/etc/credstore/lmd.hf_token")
    box.drop_in(f"[Service]\nEnvironment=HF_ENDPOINT={hub.stdout.readline().strip()}\n")
    box("systemctl", "start", "lmd")
    box("lmctl", "get", "--yes", "lab/tiny-GGUF")
    assert "1" in box.ask("lab/tiny-GGUF")
    folder = "/run/credentials/lmd.service"
    assert box("cat", f"{folder}/hf_token") == "hf_right\n"
    assert box.run("runuser", "-u", "member", "--", "cat", f"{folder}/hf_token").returncode != 0
    assert "hf_right" not in box("cat", f"/proc/{box.show('MainPID')}/environ")
    box("rm", "-r", "/etc/credstore/lmd.hf_token", "/var/lib/lmd/models/lab")
    box("kill", pid)


def test_it_runs_as_a_dynamic_user_too(boot: Callable[[], Box]) -> None:
    box = boot()
    box.drop_in((Path(__file__).parents[2] / "systemd/examples/dynamic-user.conf").read_text())
    box("systemctl", "enable", "--quiet", "--now", "lmd")
    assert "1" in box.ask()
    # Of the range that systemd draws from. Its name is known to those who have libnss-systemd, and the owner of its
    # state on disk is another one to newer systemd, which maps it.
    pid = box("systemctl", "show", "--property=MainPID", "--value", "lmd").strip()
    assert 61184 <= int(box("stat", "-c", "%u", f"/proc/{pid}")) <= 65519
    assert "lmd" in box("ls", "/var/lib/private")
    assert "serving" in box("lmctl", "status")
    box("systemctl", "reload", "lmd")
    box("systemctl", "restart", "lmd")
    assert "1" in box.ask()


def test_a_user_runs_it_without_root(box: Box, installation: Installation) -> None:
    uid = box("id", "-u", "stranger").strip()
    # By its systemd: we come in from outside, in a cgroup that the box does not see, and newer logind minds.
    loginctl = ["systemd-run", "--quiet", "--wait", "--collect", "loginctl"]
    box(*loginctl, "enable-linger", "stranger")
    eventually(lambda: box.run("test", "-S", f"/run/user/{uid}/systemd/private").returncode == 0)
    as_user = ["runuser", "-u", "stranger", "--", "env", "HOME=/home/stranger", f"XDG_RUNTIME_DIR=/run/user/{uid}"]
    box(*as_user, "mkdir", "-p", "/home/stranger/.local/bin", "/home/stranger/.local/share/lmd/models")
    for program in ("lmd", "lmctl"):
        box(*as_user, "ln", "-sf", f"{installation.environment}/bin/{program}", "/home/stranger/.local/bin/")
    box(*as_user, "cp", "/src/tests/models/tiny-chat.gguf", "/home/stranger/.local/share/lmd/models/")
    box(*as_user, "systemctl", "--user", "enable", "--quiet", "--now", "lmd")
    try:
        assert "1" in box.ask()
        assert f"/run/user/{uid}/lmd/lmd.sock" in box(*as_user, "lmctl", "status")
        box(*as_user, "systemctl", "--user", "reload", "lmd")
        status = box(*as_user, "systemctl", "--user", "status", "lmd")
        assert "1 models in memory" in status
    finally:
        box(*as_user, "systemctl", "--user", "disable", "--quiet", "--now", "lmd")
        box(*loginctl, "disable-linger", "stranger")
