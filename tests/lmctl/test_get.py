"""lmctl get, downloads, ls, show, import and rm against the real daemon, and a hub of our own."""

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MODELS, Daemon, StartDaemon
from tests.hub.fake_hub import Content, FakeHub, Fault
from tests.lmctl.conftest import LMCTL, Ran, Run, environment
from tests.lmctl.terminal import terminal

TINY = (MODELS / "tiny-chat.gguf").read_bytes()


@pytest.fixture
async def hub() -> AsyncIterator[FakeHub]:
    async with FakeHub().running() as running:
        running.add("lab/tiny-GGUF", {"tiny-Q8_0.gguf": TINY, "tiny-F16.gguf": Content(size=1 << 22)}, downloads=5000)
        running.add("amateur/tiny-GGUF", {"tiny-Q8_0.gguf": TINY + bytes(32)}, downloads=10)
        yield running


def hub_environment(hub: FakeHub) -> dict[str, str]:
    return {"HF_ENDPOINT": hub.url, "HF_HUB_DOWNLOAD_TIMEOUT": "3", "NO_PROXY": "127.0.0.1", "HF_TOKEN": ""}


@pytest.fixture
async def lmd(hub: FakeHub, start_daemon: StartDaemon) -> AsyncIterator[Daemon]:
    daemon = start_daemon("[models]\nstandby = false\n", models=[], environ=hub_environment(hub))
    yield daemon
    daemon.stop()


async def told(lmctl: Run, lmd: Daemon, *args: str) -> Any:
    ran = await lmctl(*args, "--json", env=environment(lmd.socket))
    assert ran.code == 0, ran.err
    return json.loads(ran.out)


async def run(lmctl: Run, lmd: Daemon, *args: str) -> Ran:
    return await lmctl(*args, env=environment(lmd.socket))


async def test_a_model_is_fetched_by_name_listed_shown_used_and_removed(hub: FakeHub, lmd: Daemon, lmctl: Run) -> None:
    ran = await run(lmctl, lmd, "get", "lab/tiny-GGUF@q8_0")
    size = f"{len(TINY) / 2**20:.2f} MiB"
    assert ran.code == 0, ran.err
    assert ran.out == f"lab/tiny-GGUF is complete ({size}); load it with 'lmctl load lab/tiny-GGUF'.\n"
    assert (lmd.models / "lab/tiny-GGUF/tiny-Q8_0.gguf").read_bytes() == TINY
    [row] = await told(lmctl, lmd, "ls")
    assert (row["key"], row["format"], row["publisher"]) == ("lab/tiny-GGUF", "gguf", "lab")
    spoken = await told(lmctl, lmd, "chat", "lab/tiny-GGUF", "-p", "Count to 5.")
    assert spoken["usage"]["completion_tokens"] > 1

    again = await run(lmctl, lmd, "get", "lab/tiny-GGUF@q8_0")
    assert again.code == 0 and "on disk already" in again.out

    shown = await told(lmctl, lmd, "show", "tiny")
    assert shown["model"]["key"] == "lab/tiny-GGUF"
    assert "chat" in shown["capabilities"] and shown["template"]
    totals = [row["total"] for row in shown["memory"]]
    assert totals == sorted(totals) and totals[0] > 0
    assert shown["header"]["general.architecture"]
    assert (await run(lmctl, lmd, "show", "tiny", "--template")).out.rstrip("\n") == shown["template"].rstrip("\n")

    loaded = await run(lmctl, lmd, "rm", "lab/tiny-GGUF", "-y")
    assert loaded.code == 1 and "--force" in loaded.err
    unsaid = await run(lmctl, lmd, "rm", "lab/tiny-GGUF", "--force")
    assert unsaid.code == 2 and "-y" in unsaid.err
    assert (await run(lmctl, lmd, "rm", "lab/tiny-GGUF", "--dry-run")).code == 0
    assert (await run(lmctl, lmd, "rm", "lab/tiny-GGUF", "--force", "-y")).code == 0
    assert list(lmd.models.iterdir()) == []
    assert await told(lmctl, lmd, "ls") == []
    assert await told(lmctl, lmd, "ps") == []


async def test_a_person_is_asked_before_a_model_goes_and_only_yes_removes_it(lmd: Daemon, lmctl: Run) -> None:
    imported = await run(lmctl, lmd, "import", str(MODELS / "tiny-chat.gguf"), "--copy")
    assert imported.code == 0, imported.err
    for keys, code, left in (("\r", 1, 1), ("n\r", 1, 1), ("\x03", 130, 1), ("y\r", 0, 0)):
        async with terminal(LMCTL, "rm", "tiny-chat", env=environment(lmd.socket)) as screen:
            await screen.until("Remove tiny-chat (1.69 MiB)? [y/N] ")
            screen.type(keys)
            assert await screen.end() == code
        assert len(list(lmd.models.iterdir())) == left


async def test_a_file_that_cannot_be_served_is_removed_by_the_name_that_ls_shows(
    start_daemon: StartDaemon, lmctl: Run, tmp_path: Path
) -> None:
    wrecked = tmp_path / "wrecked.gguf"
    wrecked.write_bytes(b"GGUF" + bytes(100))
    lmd = start_daemon("[models]\nstandby = false\n", models=[wrecked, MODELS / "tiny-chat.gguf"])
    assert [row["key"] for row in await told(lmctl, lmd, "ls") if row["error"]] == ["wrecked.gguf"]
    removed = await run(lmctl, lmd, "rm", "wrecked.gguf", "-y")
    assert removed.code == 0 and "wrecked.gguf" in removed.out
    assert [path.name for path in lmd.models.iterdir()] == ["tiny-chat.gguf"]
    assert [row["key"] for row in await told(lmctl, lmd, "ls")] == ["tiny-chat"]
    lmd.stop()


async def test_words_with_more_than_one_match_are_listed_and_not_guessed(hub: FakeHub, lmd: Daemon, lmctl: Run) -> None:
    ran = await run(lmctl, lmd, "get", "tiny")
    assert ran.code == 2
    lines = ran.out.splitlines()
    assert "lab/tiny-GGUF" in lines[1] and "5K" in lines[1] and "Q8_0" in lines[1] and "yes" in lines[1]
    assert "amateur/tiny-GGUF" in lines[2]
    assert "2 repositories" in ran.err and "-y" in ran.err
    assert await told(lmctl, lmd, "downloads") == []

    one = await run(lmctl, lmd, "get", "amateur")
    assert one.code == 0 and "amateur/tiny-GGUF" in one.out
    first = await run(lmctl, lmd, "get", "tiny", "-y")
    assert first.code == 0 and "lab/tiny-GGUF" in first.out
    assert (lmd.models / "lab/tiny-GGUF/tiny-Q8_0.gguf").exists()

    both = await run(lmctl, lmd, "get", "lab/tiny-GGUF@f16", "--draft", "amateur/tiny-GGUF")
    assert both.code == 0, both.err
    model, draft = both.out.splitlines()
    assert "finds no model in it" in model  # its bytes were made up
    assert draft.startswith("amateur/tiny-GGUF") and "on disk already" in draft

    nothing = await run(lmctl, lmd, "get", "unheard-of")
    assert nothing.code == 1 and "unheard-of" in nothing.err
    missing = await run(lmctl, lmd, "get", "lab/nothing")
    assert missing.code == 1 and "spelling" in missing.err
    wrong = await run(lmctl, lmd, "get", "lab/tiny-GGUF@q2_k")
    assert wrong.code == 1 and "Q8_0" in wrong.err


@pytest.mark.parametrize(
    "link",
    [
        "{hub}/lab/tiny-GGUF",
        "{hub}/lab/tiny-GGUF/tree/main",
        "{hub}/lab/tiny-GGUF/blob/main/tiny-Q8_0.gguf",
        "{hub}/lab/tiny-GGUF/resolve/main/tiny-Q8_0.gguf?download=true",
    ],
)
async def test_links_are_fetched_with_an_event_for_each_change(
    hub: FakeHub, start_daemon: StartDaemon, lmctl: Run, link: str
) -> None:
    lmd = start_daemon("[models]\nstandby = false\n", models=[], environ=hub_environment(hub))
    ran = await run(lmctl, lmd, "get", link.format(hub=hub.url), "--json")
    assert ran.code == 0, ran.err
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert {event["type"] for event in events} == {"download"}
    last = events[-1]["download"]
    assert (last["state"], last["quantization"], last["key"]) == ("completed", "Q8_0", "lab/tiny-GGUF")
    lmd.stop()


async def test_a_person_chooses_by_number(hub: FakeHub, lmd: Daemon) -> None:
    async with terminal(LMCTL, "get", "tiny", env=environment(lmd.socket)) as screen:
        await screen.until("Which one?")
        screen.type("1\r")
        await screen.until("Which quantization of lab/tiny-GGUF?")
        screen.type("\r")
        assert await screen.end() == 0
    assert "lab/tiny-GGUF is complete" in screen.text
    assert (lmd.models / "lab/tiny-GGUF/tiny-Q8_0.gguf").exists()


async def test_a_watcher_that_leaves_leaves_the_download_running(hub: FakeHub, lmd: Daemon, lmctl: Run) -> None:
    hub.hold = asyncio.Event()
    async with terminal(LMCTL, "get", "lab/tiny-GGUF@q8_0", env=environment(lmd.socket)) as screen:
        await hub.held.wait()
        await screen.until("lab/tiny-GGUF@q8_0")
        screen.type("\x03")
        await screen.until("Leave it running")
        screen.type("\r")
        assert await screen.end() == 130
    [row] = await told(lmctl, lmd, "downloads")
    assert row["state"] == "downloading"
    async with terminal(LMCTL, "downloads", "watch", env=environment(lmd.socket)) as screen:
        await screen.until("lab/tiny-GGUF@q8_0")
        hub.hold.set()
        await screen.until("lab/tiny-GGUF is complete")
        assert await screen.end() == 0
    assert (lmd.models / "lab/tiny-GGUF/tiny-Q8_0.gguf").read_bytes() == TINY


async def test_downloads_are_paused_resumed_and_cancelled_by_name(hub: FakeHub, lmd: Daemon, lmctl: Run) -> None:
    hub.hold = asyncio.Event()
    assert (await run(lmctl, lmd, "get", "lab/tiny-GGUF@q8_0", "--detach")).code == 0
    await hub.held.wait()
    assert (await run(lmctl, lmd, "downloads", "pause")).code == 0
    assert (await told(lmctl, lmd, "downloads", "ls"))[0]["state"] == "paused"
    assert "paused" in (await run(lmctl, lmd, "downloads")).out
    unclear = await run(lmctl, lmd, "downloads", "pause", "nothing")
    assert unclear.code == 1 and "nothing" in unclear.err
    assert (await run(lmctl, lmd, "downloads", "resume", "lab/tiny-GGUF")).code == 0
    assert (await run(lmctl, lmd, "downloads", "cancel", "lab/tiny-GGUF@q8_0")).code == 0
    assert list(lmd.models.iterdir()) == []
    ended = await run(lmctl, lmd, "downloads", "resume", (await told(lmctl, lmd, "downloads"))[0]["id"])
    assert ended.code == 1 and "cancelled" in ended.err


async def test_an_mlx_model_is_kept_listed_and_refused_for_loading(hub: FakeHub, lmd: Daemon, lmctl: Run) -> None:
    config = json.dumps({"model_type": "llama", "quantization": {"bits": 4}}).encode()
    hub.add("mlx-community/tiny-4bit", {"config.json": config, "model.safetensors": bytes(9999)}, tags=("mlx",))
    ran = await run(lmctl, lmd, "get", "tiny", "--mlx")
    assert ran.code == 0 and "no engine for MLX" in ran.out
    [row] = await told(lmctl, lmd, "ls")
    assert (row["key"], row["format"], row["quantization"]) == ("mlx-community/tiny-4bit", "mlx", "4bit")
    loading = await run(lmctl, lmd, "load", "mlx-community/tiny-4bit")
    assert loading.code == 1 and "no engine" in loading.err
    assert (await run(lmctl, lmd, "show", "mlx-community/tiny-4bit")).code == 0


@pytest.mark.parametrize("way", ["move", "copy", "hard-link", "symbolic-link"])
async def test_a_file_is_imported(lmd: Daemon, lmctl: Run, tmp_path: Path, way: str) -> None:
    file = tmp_path / "mine.gguf"
    shutil.copy(MODELS / "tiny-chat.gguf", file)
    flags = [] if way == "move" else [f"--{way}"]
    dry = await run(lmctl, lmd, "import", str(file), *flags, "--user-repo", "me/mine", "--dry-run")
    assert dry.code == 0 and not list(lmd.models.iterdir())
    ran = await run(lmctl, lmd, "import", str(file), *flags, "--user-repo", "me/mine")
    assert ran.code == 0, ran.err
    assert "The model is me/mine" in ran.out
    target = lmd.models / "me/mine/mine.gguf"
    assert target.read_bytes() == TINY
    assert (file.exists(), target.is_symlink()) == (way != "move", way == "symbolic-link")
    assert target.stat().st_nlink == (2 if way == "hard-link" else 1)
    twice = await run(lmctl, lmd, "import", str(MODELS / "tiny-chat.gguf"), "--copy", "--user-repo", "me/mine")
    assert twice.code == 0
    again = await run(lmctl, lmd, "import", str(target), "--copy")
    assert again.code == 1 and "library already" in again.err


async def test_what_is_no_model_is_not_imported(lmd: Daemon, lmctl: Run, tmp_path: Path) -> None:
    for name, data, code in (("a.gguf", b"nonsense", 1), ("b.bin", b"GGUF", 2), ("c-00001-of-00002.gguf", b"GGUF", 1)):
        (tmp_path / name).write_bytes(data)
        ran = await run(lmctl, lmd, "import", str(tmp_path / name))
        assert ran.code == code and name.partition(".")[0][0] in ran.err
    assert list(lmd.models.iterdir()) == []


async def test_ls_shows_kinds_and_details(start_daemon: StartDaemon, lmctl: Run) -> None:
    lmd = start_daemon("[models]\nstandby = false\n")
    assert len(await told(lmctl, lmd, "ls", "--llm")) == 2
    assert await told(lmctl, lmd, "ls", "--embedding") == []
    assert await told(lmctl, lmd, "ls", "--vlm") == []
    detailed = await run(lmctl, lmd, "ls", "--detailed")
    assert f"path: {lmd.models / 'tiny-chat.gguf'}" in detailed.out and "format: gguf" in detailed.out
    lmd.stop()


@pytest.mark.slow
async def test_300_mb_survive_cuts_a_stall_a_corruption_and_a_killed_daemon(
    hub: FakeHub, start_daemon: StartDaemon, lmctl: Run
) -> None:
    """And the watcher, which was attached to the daemon that was killed, tells the end."""
    big = Content(size=300_000_000, seed=7)
    hub.add("lab/big-GGUF", {"big-Q4_K_M.gguf": big})
    cuts = [int(hashlib.sha256(b"%d" % n).hexdigest()[:6], 16) for n in range(10)]  # up to 16 MiB, ten times
    hub.faults.extend(Fault(cut_after=n) for n in cuts[:5])
    hub.faults.append(Fault(stall_after=9_000_000))
    hub.faults.extend(Fault(cut_after=n) for n in cuts[5:])
    hub.faults.append(Fault(stall_after=20_000_000))  # the daemon is killed in the middle of this
    hub.faults.append(Fault(corrupt_at=250_000_000))
    environ = hub_environment(hub) | {"HF_HUB_DOWNLOAD_TIMEOUT": "1"}
    lmd = start_daemon("[models]\nstandby = false\n", models=[], environ=environ)

    watching = asyncio.create_task(run(lmctl, lmd, "get", "lab/big-GGUF", "--json"))
    part = lmd.models / "lab/big-GGUF/big-Q4_K_M.gguf.part"
    while len(hub.asked_for("big-Q4_K_M.gguf")) < 12:  # noqa: ASYNC110 - the outside world tells no events
        await asyncio.sleep(0.02)
    lmd.process.send_signal(signal.SIGKILL)
    lmd.wait()
    kept = part.stat().st_size
    assert kept >= sum(cuts)

    again = subprocess.Popen(
        [sys.executable, "-m", "lmd", "--config", str(lmd.directory / "lmd.toml")],
        env=os.environ | environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    ran = await asyncio.wait_for(watching, 90)
    assert ran.code == 0, ran.err
    last = json.loads(ran.out.splitlines()[-1])["download"]
    assert (last["state"], last["received"]) == ("completed", 300_000_000)
    assert "lmd has gone" in ran.err

    with (lmd.models / "lab/big-GGUF/big-Q4_K_M.gguf").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == big.sha256
    assert not part.exists()
    resumed = hub.asked_for("big-Q4_K_M.gguf")[12]
    assert resumed.range == f"bytes={kept}-"
    again.send_signal(signal.SIGTERM)
    again.wait()
