"""status, ls, ps and the presets: what they show, as text and as JSON."""

import asyncio
import json

import pytest

from lmd.protocol import InstanceChanged, InstanceRow, ModelRow, PresetDetail, PresetRow, ProblemRow, ReloadResult
from tests.lmctl.conftest import LMCTL, Run, environment
from tests.lmctl.fake_daemon import TINY, FakeDaemon
from tests.lmctl.terminal import terminal

MODEL = ModelRow(
    key="owner/repo@q4_k_m",
    path="/m/repo.gguf",
    type="llm",
    architecture="llama",
    quantization="Q4_K_M",
    n_params=7_600_000_000,
    size=4_800_000_000,
    context_length=32768,
    loaded=["fast"],
    presets=["fast"],
)
PROBLEM = ProblemRow(file="/p/bad.toml", line=2, column=1, key="load.paralel", message="unknown key; meant parallel?")


async def test_status_tells_address_memory_and_requests(daemon: FakeDaemon, lmctl: Run) -> None:
    ran = await lmctl("status")
    assert ran.code == 0
    assert "url: http://127.0.0.1:1234" in ran.out
    assert "requests: 1 running, 7 served" in ran.out
    assert "memory: 44.0 MiB used by models, 8.00 GiB of 16.0 GiB free" in ran.out


async def test_status_tells_problems_where_editors_find_them(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.problems = [PROBLEM]
    ran = await lmctl("status")
    assert ran.code == 0
    assert "/p/bad.toml:2:1: load.paralel: unknown key; meant parallel?" in ran.err


async def test_ls_in_a_pipe_is_plain_whole_and_aligned(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.models = [MODEL, ModelRow("x" * 150, "/m/x.gguf", "llm", "qwen2", "Q8_0", 10**9, 2**30, 4096)]
    out = (await lmctl("ls")).out
    first, second, third = out.splitlines()
    assert first.split() == ["MODEL", "TYPE", "ARCH", "PARAMS", "QUANT", "SIZE", "CONTEXT", "LOADED", "PRESETS"]
    assert second.split() == [
        "owner/repo@q4_k_m",
        "llm",
        "llama",
        "7.6B",
        "Q4_K_M",
        "4.47",
        "GiB",
        "32768",
        "fast",
        "fast",
    ]
    assert third.startswith("x" * 150 + "  llm")
    assert first.index("QUANT") == second.index("Q4_K_M") == third.index("Q8_0")
    assert "\x1b" not in out


async def test_ls_tells_a_broken_file_by_name_and_reason(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.models = [ModelRow("half", "/m/half.gguf", "llm", "", "", 0, 12, 0, error="the file ends early")]
    ran = await lmctl("ls")
    assert ran.code == 0
    assert "half cannot be served: the file ends early" in ran.err


async def test_ps_tells_use_memory_and_time_left(daemon: FakeDaemon, lmctl: Run) -> None:
    busy = InstanceRow(
        id="big", model="owner/big", state="ready", parallel=4, running=4, queued=3, kv_cells=1000, kv_used=421,
        prompt_tokens=200, cached_tokens=150,
        decode_tps=33.66, ttl=None, pinned=True, stale=True,
    )  # fmt: skip
    loading = InstanceRow(id="new", model="owner/new", state="loading", progress=0.42, ttl=300.0)
    daemon.instances = [TINY, busy, loading]
    ran = await lmctl("ps")
    _, tiny, big, new = ran.out.splitlines()
    assert "0/4" in tiny and "44.0 MiB" in tiny and "42s" in tiny
    assert "4/4 +3" in big and "42%" in big and "75%" in big and "33.7" in big and "never" in big
    assert ran.err == "big: settings edited since it was loaded, pinned\n"
    assert "loading 42%" in new and "5m" in new


async def test_ps_of_nothing_says_what_to_do(daemon: FakeDaemon, lmctl: Run) -> None:
    ran = await lmctl("ps")
    assert (ran.code, ran.out) == (0, "")
    assert "lmctl load" in ran.err


@pytest.mark.parametrize("command", ["status", "ls", "ps"])
async def test_json_has_all_fields(daemon: FakeDaemon, lmctl: Run, command: str) -> None:
    daemon.models, daemon.instances = [MODEL], [TINY]
    told = json.loads((await lmctl(command, "--json")).out)
    row = told if isinstance(told, dict) else told[0]
    assert {"status": "problems", "ls": "mmproj", "ps": "retry_in"}[command] in row


async def test_a_name_with_escapes_cannot_steer_the_terminal(daemon: FakeDaemon) -> None:
    daemon.models = [ModelRow("evil\x1b]0;owned\x07\x1b[2J", "/m", "llm", "llama", "F16", 1, 1, 1)]
    async with terminal(LMCTL, "ls", env=environment(daemon.socket)) as screen:
        await screen.until("evil")
        await screen.end()
    assert "\x1b]0" not in screen.raw
    assert "\x1b[2J" not in screen.raw


@pytest.mark.parametrize(("extra", "styled"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
async def test_colours_are_for_terminals_that_want_them(
    daemon: FakeDaemon, extra: dict[str, str], styled: bool
) -> None:
    daemon.instances = [TINY]
    async with terminal(LMCTL, "ps", env=environment(daemon.socket, **extra)) as screen:
        assert await screen.end() == 0
    assert ("\x1b[32m" in screen.raw) is styled
    assert "ready" in screen.text


async def test_watch_redraws_at_an_event_until_ctrl_c(daemon: FakeDaemon) -> None:
    async with terminal(LMCTL, "ps", "--watch", env=environment(daemon.socket)) as screen:
        await screen.until("No model is in memory")
        daemon.instances = [TINY]
        await daemon.events.put(InstanceChanged(instance=TINY))
        await screen.until("tiny-chat")
        screen.type("\x03")
        assert await screen.end() == 0


async def test_watch_in_a_pipe_is_a_line_for_each_change(daemon: FakeDaemon, lmctl: Run) -> None:
    await daemon.events.put(InstanceChanged(instance=TINY))
    await daemon.events.put(InstanceChanged(instance=TINY, gone=True))
    await daemon.events.put(None)
    ran = await lmctl("ps", "--watch")
    assert [line.split()[1:] for line in ran.out.splitlines()] == [["tiny-chat", "ready"], ["tiny-chat", "gone"]]
    assert (ran.code, "closed the event stream" in ran.err) == (1, True)


async def test_watch_ends_with_an_error_when_the_daemon_does(daemon: FakeDaemon) -> None:
    async with terminal(LMCTL, "ps", "--watch", env=environment(daemon.socket)) as screen:
        await screen.until("No model is in memory")
        await daemon.events.put(None)
        await screen.until("closed the event stream")
        assert await screen.end() == 1


async def test_presets_are_listed_with_what_is_wrong(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.presets = [
        PresetRow("fast", "/p/fast.toml", "owner/repo", "quick", ["gpt-4o-mini"], ["fast"]),
        PresetRow("bad", "/p/bad.toml", "owner/repo", problems=[PROBLEM], serving=False),
        PresetRow("old", "/p/old.toml", "owner/repo", problems=[PROBLEM]),
    ]
    ran = await lmctl("preset", "ls")
    assert [line.split()[2] for line in ran.out.splitlines()] == ["STATE", "ok", "broken", "edit"]
    assert "gpt-4o-mini" in ran.out
    assert "/p/bad.toml:2:1: load.paralel" in ran.err


async def test_a_preset_is_shown_as_its_file(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.details["a/b"] = PresetDetail("a/b", "/p/a.toml", '# mine\nmodel = "m"')
    ran = await lmctl("preset", "show", "a/b")
    assert (ran.out, ran.err.strip()) == ('# mine\nmodel = "m"\n', "/p/a.toml")


async def test_an_effective_preset_tells_where_each_setting_is_from(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.details["fast"] = PresetDetail(
        "fast",
        "/p/fast.toml",
        "",
        effective={"model": "m", "load": {"parallel": 4, "mmap": None}, "sampling": {"stop": ["a", "b"]}, "chat": {}},
        origin={"load.parallel": "/etc/lmd/lmd.toml"},
    )
    ran = await lmctl("preset", "show", "fast", "--effective")
    assert daemon.requests == [("GET /presets/fast?effective=1", None)]
    assert ["load.parallel", "4", "/etc/lmd/lmd.toml"] in [line.split() for line in ran.out.splitlines()]
    assert ["sampling.stop", '["a",', '"b"]', "-"] in [line.split() for line in ran.out.splitlines()]


async def test_a_missing_preset_is_the_daemons_own_message(daemon: FakeDaemon, lmctl: Run) -> None:
    ran = await lmctl("preset", "show", "none")
    assert (ran.code, ran.err) == (1, "error: No such preset.\nSee 'lmctl preset ls'.\n")


async def test_check_exits_with_1_and_the_places_when_a_file_is_wrong(daemon: FakeDaemon, lmctl: Run) -> None:
    good = await lmctl("preset", "check")
    daemon.problems = [PROBLEM]
    bad = await lmctl("preset", "check")
    assert (good.code, good.out) == (0, "All presets are good.\n")
    assert (bad.code, bad.out) == (1, "/p/bad.toml:2:1: load.paralel: unknown key; meant parallel?\n")
    assert json.loads((await lmctl("preset", "check", "--json")).out)[0]["line"] == 2


async def test_reload_tells_what_changed_and_fails_with_what_did_not(daemon: FakeDaemon, lmctl: Run) -> None:
    assert (await lmctl("reload")).out == "Nothing has changed.\n"
    daemon.reloaded = ReloadResult(changed=["fast"])
    good = await lmctl("reload")
    daemon.reloaded = ReloadResult(changed=["fast"], problems=[PROBLEM])
    bad = await lmctl("reload")
    assert (good.code, good.out) == (0, "changed fast\n")
    assert (bad.code, bad.out) == (1, "changed fast\n")
    assert "/p/bad.toml:2:1" in bad.err


async def test_an_interrupted_watch_closes_its_stream(daemon: FakeDaemon) -> None:
    async with terminal(LMCTL, "ps", "--watch", env=environment(daemon.socket)) as screen:
        await screen.until("No model")
    await asyncio.wait_for(daemon.gone.wait(), 30)
