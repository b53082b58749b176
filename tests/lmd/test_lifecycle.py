"""Presets that are edited and models that come and go, over the real daemon with real workers."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Daemon, StartDaemon
from tests.lmd.client import LONG, SHORT, alive, control, events, eventually, following, get, post
from tests.lmd.config.saving import SAVES

FIVE = 'model = "tiny-chat"\n[sampling]\ntemperature = 0\nmax_tokens = 5\n'
NINE = FIVE.replace("5", "9")
OPEN = {**LONG, "max_tokens": 1500}
"""A stream that outlives an edit and then ends by itself."""
SOON = 5.0
"""Seconds in which an edit has to be told. What is promised is one: the rest is for machines that test beside."""


def without(body: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in keys}


BRIEF = without(SHORT, "max_tokens", "temperature")
"""Leaves to the preset what it has to say."""


def n_tokens(daemon: Daemon, model: str, **more: Any) -> int:
    """How long the answer is that the settings of ``model`` allow; 0 where it is refused."""
    answer = json.loads(post(daemon.url, {**BRIEF, "model": model, **more}).read())
    return int(answer["usage"]["completion_tokens"]) if "usage" in answer else 0


def instances(daemon: Daemon) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in control(daemon.socket, "/instances")}


def opened(daemon: Daemon, model: str, **more: Any) -> tuple[HTTPResponse, Any]:
    """A stream that has had its first event."""
    response = post(daemon.url, {**OPEN, "model": model, **more})
    stream = events(response)
    next(stream)
    return response, stream


def ends_well(stream: Any) -> bool:
    *_, last, done = stream
    return (last["choices"][0]["finish_reason"], done) == ("length", "[DONE]")


# ── edits ─────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def edited(start_daemon: StartDaemon) -> Iterator[Daemon]:
    daemon = start_daemon(presets={"brief": FIVE})
    yield daemon
    daemon.stop()


@pytest.mark.parametrize("save", SAVES)
def test_an_edit_counts_for_the_next_request_and_drops_no_stream(
    edited: Daemon, save: Callable[[Path, str], None]
) -> None:
    _, stream = opened(edited, "brief", max_tokens=3000)
    (before,) = instances(edited).values()
    known = edited.log.count("reloaded: brief")
    with following(edited.socket, "/events", SOON) as told:
        for tokens, alias in ((9, "short"), (7, "terse")):
            save(edited.presets / "brief.toml", f'aliases = ["{alias}"]\n{FIVE.replace("5", str(tokens))}')
            told_of = next(event for event in told if event["type"] == "presets")
            assert told_of == {"type": "presets", "changed": ["brief"], "problems": []}
            response = post(edited.url, {**BRIEF, "model": alias})
            assert response.headers["X-Lmd-Preset"] == "brief"
            assert json.loads(response.read())["usage"]["completion_tokens"] == tokens
    assert instances(edited)[before["id"]]["leases"] == 1  # the edits came in while the stream was open
    assert ends_well(stream)
    assert {row["pid"] for row in instances(edited).values()} == {before["pid"]}
    assert edited.log.count("reloaded: brief") == known + 2


def test_an_invalid_edit_changes_nothing_and_is_told_until_it_is_mended(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(presets={"brief": FIVE})
    file = daemon.presets / "brief.toml"
    _, stream = opened(daemon, "brief")
    file.write_text(NINE.replace("temperature", "temprature"))
    assert eventually(lambda: "problems" in control(daemon.socket, "/status"))
    for route, body in (("/status", None), ("/presets/check", {}), ("/presets", None)):
        told = control(daemon.socket, route, body)
        problems = told["problems"] if isinstance(told, dict) else told
        problem = problems[0]["problems"][0] if route == "/presets" else problems[0]
        assert (problem["file"], problem["line"], problem["column"]) == (str(file), 3, 1)
        assert "temprature" in problem["message"] + problem["key"] and "temperature" in problem["message"]
    assert f"{file}:3:1" in daemon.log
    assert n_tokens(daemon, "brief") == 5
    assert ends_well(stream)
    file.write_text(NINE)
    assert eventually(lambda: "problems" not in control(daemon.socket, "/status"))
    assert n_tokens(daemon, "brief") == 9
    assert control(daemon.socket, "/presets/check", {}) == []


def test_an_alias_that_hides_a_model_is_told_with_both_files(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(presets={"brief": FIVE})
    file = daemon.presets / "brief.toml"
    file.write_text(f'aliases = ["Tiny-Draft"]\n{FIVE}')
    assert eventually(lambda: "problems" in control(daemon.socket, "/status"))
    (row,) = control(daemon.socket, "/presets")
    for (problem,) in (
        control(daemon.socket, "/status")["problems"],
        control(daemon.socket, "/presets/check", {}),
        row["problems"],
    ):
        assert (problem["file"], problem["line"], problem["key"]) == (str(file), 1, "aliases")
        assert str(daemon.models / "tiny-draft.gguf") in problem["message"]
    assert f"{file}:1" in daemon.log
    (daemon.models / "tiny-draft.gguf").unlink()
    assert eventually(lambda: "problems" not in control(daemon.socket, "/status"))


def test_a_preset_whose_model_is_not_there_says_so(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(presets={"lost": 'model = "no-such-model"\n', "base": "[sampling]\ntop_k = 3\n"})
    rows = {row["name"]: row for row in control(daemon.socket, "/presets")}
    assert rows["lost"]["serving"] is False
    assert "no-such-model" in rows["lost"]["problems"][0]["message"]


def test_a_base_can_be_shown_like_any_preset(start_daemon: StartDaemon) -> None:
    base = "[sampling]\ntop_k = 3\n"
    daemon = start_daemon(presets={"base": base, "brief": f'extends = "base"\n{FIVE}'})
    shown = control(daemon.socket, "/presets/base?effective=1")
    assert (shown["text"], shown["effective"]["sampling"]["top_k"]) == (base, 3)
    shown = control(daemon.socket, "/presets/brief?effective=1")
    assert (shown["effective"]["sampling"]["top_k"], shown["origin"]["sampling.top_k"]) == (
        3,
        f"{daemon.presets / 'base.toml'}:2",
    )


def test_a_load_change_makes_the_running_instance_stale_until_it_is_idle(start_daemon: StartDaemon) -> None:
    preset = 'model = "tiny-chat"\npreload = {}\n[load]\ncontext_length = {}\n'
    daemon = start_daemon(presets={"jit": preset.format("false", 2048), "warm": preset.format("true", 1024)})
    _, stream = opened(daemon, "jit")
    before = instances(daemon)
    (daemon.presets / "jit.toml").write_text(preset.format("false", 512))
    (daemon.presets / "warm.toml").write_text(preset.format("true", 768))
    assert eventually(lambda: instances(daemon)["jit"].get("stale", False))
    assert n_tokens(daemon, "jit", max_tokens=3) == 3  # it serves on
    assert instances(daemon)["jit"]["pid"] == before["jit"]["pid"]
    # What was idle and wanted in memory has been replaced, unasked.
    assert eventually(lambda: instances(daemon).get("warm", {}).get("context_length") == 768)
    assert instances(daemon)["warm"]["pid"] != before["warm"]["pid"]
    assert ends_well(stream)
    assert eventually(lambda: set(instances(daemon)) == {"warm"})
    assert not alive(before["jit"]["pid"])
    assert n_tokens(daemon, "jit", max_tokens=3) == 3
    assert instances(daemon)["jit"]["context_length"] == 512


def test_reload_replaces_at_once_and_the_old_one_ends_with_its_stream(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(presets={"brief": FIVE + "[load]\ncontext_length = 2048\n"})
    _, stream = opened(daemon, "brief")
    old = instances(daemon)["brief"]["pid"]
    (daemon.presets / "brief.toml").write_text(FIVE + "[load]\ncontext_length = 512\n")
    control(daemon.socket, "/reload", {})
    done = control(daemon.socket, "/load", {"model": "brief", "reload": True})
    assert done["type"] == "done", done
    assert (done["instance"]["id"], done["instance"]["context_length"]) == ("brief", 512)
    rows = instances(daemon)
    assert rows["brief"]["pid"] != old
    assert (rows["brief:old"]["pid"], rows["brief:old"]["state"]) == (old, "draining")
    assert n_tokens(daemon, "brief") == 5
    assert ends_well(stream)
    assert eventually(lambda: set(instances(daemon)) == {"brief"})
    assert not alive(old)


def test_a_deleted_preset_is_listed_no_more_and_its_instance_drains(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(presets={"brief": FIVE})
    _, stream = opened(daemon, "brief")
    pid = instances(daemon)["brief"]["pid"]
    (daemon.presets / "brief.toml").unlink()
    assert eventually(lambda: get(daemon.url, "/v1/models/brief")[0] == 404)
    assert instances(daemon)["brief"]["state"] == "draining"
    assert post(daemon.url, {**BRIEF, "model": "brief"}).status == 404
    assert ends_well(stream)
    assert eventually(lambda: not instances(daemon))
    assert not alive(pid)


# ── what is applied ───────────────────────────────────────────────────────────────────────────


def test_presets_that_differ_in_sampling_share_one_instance_and_the_answer_names_its_preset(
    start_daemon: StartDaemon,
) -> None:
    daemon = start_daemon(presets={"five": FIVE, "nine": NINE.replace("\n[", '\naliases = ["ix"]\n[', 1)})
    for body, preset, tokens in (
        ({"model": "five"}, "five", 5),
        ({"model": "ix"}, "nine", 9),
        ({"model": "tiny-chat", "preset": "ix"}, "nine", 9),
        ({"model": "five", "preset": "nine"}, "nine", 9),
        ({"model": "five", "preset": "nine", "max_tokens": 2}, "nine", 2),
        ({"model": "tiny-chat", "max_tokens": 2}, None, 2),
    ):
        response = post(daemon.url, {**BRIEF, **body})
        assert response.headers["X-Lmd-Preset"] == preset
        assert json.loads(response.read())["usage"]["completion_tokens"] == tokens
    assert len(instances(daemon)) == 1
    rows = {row["name"]: row for row in control(daemon.socket, "/presets")}
    assert rows["five"]["loaded"] == rows["nine"]["loaded"] == ["five"]
    response, stream = opened(daemon, "nine", max_tokens=3)
    assert response.headers["X-Lmd-Preset"] == "nine"
    assert ends_well(stream)
    missing = post(daemon.url, {**BRIEF, "preset": "none"})
    assert (missing.status, json.loads(missing.read())["error"]["param"]) == (404, "preset")


# ── coming and going ──────────────────────────────────────────────────────────────────────────


def test_what_was_idle_for_its_ttl_leaves_and_its_process_with_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(presets={"brief": FIVE, "gone": f'ttl = "300ms"\n{FIVE}[load]\nparallel = 2\n'})
    assert n_tokens(daemon, "brief", ttl=0.3) == 5
    pid = instances(daemon)["brief"]["pid"]
    assert eventually(lambda: instances(daemon) == {})
    assert not alive(pid)
    assert n_tokens(daemon, "gone") == 5
    assert eventually(lambda: instances(daemon) == {})


@pytest.mark.parametrize(("said", "ttl"), [("2m", 120.0), (90, 90.0), (-1, None), ("never", None)])
def test_a_request_says_how_long_the_model_stays_and_pins_nothing(daemon: Daemon, said: Any, ttl: float | None) -> None:
    assert n_tokens(daemon, "tiny-draft", ttl=said, max_tokens=2) == 2
    row = instances(daemon)["tiny-draft"]
    assert (row.get("ttl"), row.get("pinned", False)) == (ttl, False)
    if ttl is None:
        assert "expires_in" not in row
    else:
        assert 0 < row["expires_in"] <= ttl
    assert control(daemon.socket, "/unload", {"id": "tiny-draft"}) == ["tiny-draft"]


def test_unloading_by_force_ends_a_stream_with_an_error(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    _, stream = opened(daemon, "tiny-chat", max_tokens=6000)
    pid = instances(daemon)["tiny-chat"]["pid"]
    refused = control(daemon.socket, "/unload", {"id": "tiny-chat"})
    assert refused["code"] == "conflict" and "--force" in refused["hint"]
    assert control(daemon.socket, "/unload", {"id": "tiny-chat", "force": True}) == ["tiny-chat"]
    *_, last = stream
    assert last["error"]["code"] == "model_unloaded"
    assert not alive(pid)
    assert instances(daemon) == {}


def test_a_model_that_keeps_dying_backs_off_visibly_until_it_is_loaded_by_hand(start_daemon: StartDaemon) -> None:
    daemon = start_daemon()
    for deaths in (1, 2, 3):
        assert eventually(lambda: n_tokens(daemon, "tiny-chat", max_tokens=2) == 2)
        os.kill(instances(daemon)["tiny-chat"]["pid"], signal.SIGKILL)
        assert eventually(lambda: instances(daemon)["tiny-chat"]["state"] in {"dead", "backoff"})
        row = instances(daemon)["tiny-chat"]
        assert row["deaths"] == deaths
        assert "SIGKILL" in row["error"]
    assert (row["state"], 0 < row["retry_in"] <= 2) == ("backoff", True)
    refused = post(daemon.url, SHORT)
    assert (refused.status, int(refused.headers["Retry-After"]) >= 1) == (429, True)
    assert control(daemon.socket, "/load", {"model": "tiny-chat"})["type"] == "done"
    row = instances(daemon)["tiny-chat"]
    assert (row["state"], row.get("deaths", 0)) == ("ready", 0)
