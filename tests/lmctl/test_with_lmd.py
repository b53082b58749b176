"""lmctl against the real daemon and the tiny model."""

import asyncio
import json
import urllib.request

import pytest

from tests.conftest import Daemon, StartDaemon
from tests.lmctl.conftest import LMCTL, Run, environment
from tests.lmctl.terminal import terminal

COUNTER = 'model = "tiny-chat"\naliases = ["gpt-count"]\n[sampling]\ntemperature = 0\n'


@pytest.fixture(scope="module")
def lmd(start_daemon: StartDaemon) -> Daemon:
    return start_daemon(presets={"counter": COUNTER})


async def answer(lmctl: Run, lmd: Daemon, *args: str) -> str:
    ran = await lmctl(*args, env=environment(lmd.socket))
    assert ran.code == 0, ran.err
    return ran.out


async def told(lmctl: Run, lmd: Daemon, *args: str) -> object:
    return json.loads(await answer(lmctl, lmd, *args, "--json"))


async def test_load_chat_and_unload(lmd: Daemon, lmctl: Run) -> None:
    assert "tiny-chat loaded in" in await answer(lmctl, lmd, "load", "tiny-chat", "--ttl", "60", "--parallel", "2")
    assert "was loaded already" in await answer(lmctl, lmd, "load", "tiny-chat", "--ttl", "60", "--parallel", "2")

    [row] = await told(lmctl, lmd, "ps")  # type: ignore[misc]
    assert (row["id"], row["state"], row["parallel"], row["ttl"]) == ("tiny-chat", "ready", 2, 60.0)
    assert 0 < row["expires_in"] <= 60

    spoken = await told(lmctl, lmd, "chat", "-p", "Count to 5.", "--ttl", "never")
    assert isinstance(spoken, dict)
    assert (spoken["model"], spoken["usage"]["completion_tokens"] > 1) == ("tiny-chat", True)

    assert await answer(lmctl, lmd, "unload", "tiny-chat") == "unloaded tiny-chat\n"
    assert await told(lmctl, lmd, "ps") == []


async def test_a_preset_answers_and_its_settings_are_told(lmd: Daemon, lmctl: Run) -> None:
    assert await answer(lmctl, lmd, "chat", "counter", "-p", "Count to 5.") == "1, 2, 3, 4, 5.\n"
    assert "gpt-count" in await answer(lmctl, lmd, "preset", "ls")
    assert await answer(lmctl, lmd, "preset", "show", "gpt-count") == COUNTER
    effective = await answer(lmctl, lmd, "preset", "show", "counter", "--effective")
    assert any(
        line.split()[:1] == ["sampling.temperature"] and "counter.toml" in line for line in effective.splitlines()
    )
    assert await answer(lmctl, lmd, "preset", "check") == "All presets are good.\n"
    await answer(lmctl, lmd, "unload", "--all")


async def test_a_wrong_edit_is_told_by_check_and_reload(start_daemon: StartDaemon, lmctl: Run) -> None:
    lmd = start_daemon(presets={"counter": COUNTER})
    file = lmd.presets / "counter.toml"
    file.write_text(COUNTER.replace("temperature", "temprature"))
    for command in (("preset", "check"), ("reload",)):
        ran = await lmctl(*command, env=environment(lmd.socket))
        assert ran.code == 1
        assert f"{file}:4" in ran.out + ran.err
        assert "temperature" in ran.out + ran.err
    assert str(file) in (await lmctl("status", env=environment(lmd.socket))).err
    file.write_text(COUNTER.replace("= 0", "= 1"))
    assert (await lmctl("reload", env=environment(lmd.socket))).code == 0


async def test_refusals_of_the_daemon_reach_the_person(lmd: Daemon, lmctl: Run) -> None:
    for command in (
        ("load", "nothing"),
        ("unload", "nothing"),
        ("preset", "show", "nothing"),
        ("chat", "nothing", "-pHi"),
    ):
        ran = await lmctl(*command, env=environment(lmd.socket))
        assert (ran.code, ran.out) == (1, "")
        assert "nothing" in ran.err
    wrong = await lmctl("load", "tiny-chat", "--set", "paralel=2", env=environment(lmd.socket))
    assert (wrong.code, "paralel" in wrong.err) == (1, True)


async def test_ls_and_estimate_know_the_model(lmd: Daemon, lmctl: Run) -> None:
    rows = await told(lmctl, lmd, "ls")
    assert {row["key"]: row["quantization"] for row in rows}["tiny-chat"] == "F16"  # type: ignore[union-attr]
    estimate = await told(lmctl, lmd, "load", "tiny-chat", "--estimate-only")
    assert isinstance(estimate, dict)
    assert 0 < estimate["weights"] < estimate["total"] <= estimate["free"]


async def test_watch_sees_a_load_and_ctrl_c_in_a_chat_frees_the_model(lmd: Daemon, lmctl: Run) -> None:
    env = environment(lmd.socket)
    async with (
        terminal(LMCTL, "ps", "--watch", env=env) as watched,
        terminal(LMCTL, "chat", "counter", env=env) as talk,
    ):
        await watched.until("No model is in memory")
        await talk.until("> ")
        talk.type("Count to 40.\r")
        await talk.until("1,")
        await watched.until("counter")
        talk.type("\x03")
        await talk.until("> ")
        talk.type("/exit\r")
        assert await talk.end() == 0
        watched.type("\x03")
        assert await watched.end() == 0
    assert await answer(lmctl, lmd, "unload", "--all", "--force") == "unloaded counter\n"


async def test_log_shows_the_rendered_prompt_and_the_answer_of_another_client(lmd: Daemon, lmctl: Run) -> None:
    env = environment(lmd.socket)
    async with (
        terminal(LMCTL, "log", "--stats", env=env) as watched,
        terminal(LMCTL, "log", "--source", "server", env=env, columns=200) as server,
    ):
        await watched.until("Ctrl-C ends.")
        await answer(lmctl, lmd, "chat", "counter", "-p", "Count to 3.")
        shown = await watched.until("ended by ")
        assert "Count to 3.<|im_end|>" in watched.text and "1, 2, 3." in shown
        await server.until("POST /v1/chat/completions 200")
        watched.type("\x03")
        assert await watched.end() == 0
    assert "Count to 3." not in lmd.log
    await answer(lmctl, lmd, "unload", "--all")


async def test_the_stopped_daemon_is_exit_code_3(start_daemon: StartDaemon, lmctl: Run) -> None:
    lmd = start_daemon()
    assert (await lmctl("status", env=environment(lmd.socket))).code == 0
    await asyncio.to_thread(lmd.stop)
    assert (await lmctl("status", env=environment(lmd.socket))).code == 3


async def test_conversations_are_listed_and_removed(lmd: Daemon, lmctl: Run) -> None:
    def ask(**more: str) -> str:
        body = {"model": "tiny-chat", "input": "Count to 5.", "max_output_tokens": 4, **more}
        request = urllib.request.Request(
            f"{lmd.url}/api/v1/chat", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as response:
            return str(json.load(response)["response_id"])

    assert "No conversations" in (await lmctl("chats", env=environment(lmd.socket))).err
    first = await asyncio.to_thread(ask)
    second = await asyncio.to_thread(ask, previous_response_id=first)
    other = await asyncio.to_thread(ask)
    rows = await told(lmctl, lmd, "chats", "ls")
    assert isinstance(rows, list)
    assert [(row["id"], row["responses"]) for row in rows] == [(other, 1), (first, 2)]
    assert "Count to 5." in await answer(lmctl, lmd, "chats")
    assert await answer(lmctl, lmd, "chats", "rm", second) == f"removed {first}\n"
    assert (await lmctl("chats", "rm", first, env=environment(lmd.socket))).code == 1
    assert (await lmctl("chats", "rm", env=environment(lmd.socket))).code == 2
    assert await answer(lmctl, lmd, "chats", "rm", "--all") == f"removed {other}\n"
