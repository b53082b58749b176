"""The control socket's routes, as `lmd.protocol` has them."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lmd.errors import LoadFailed
from lmd.protocol import (
    ControlEvent,
    Done,
    Estimate,
    Failure,
    InstanceRow,
    ModelRow,
    PresetDetail,
    PresetRow,
    PresetsChanged,
    ProblemRow,
    Progress,
    ReloadResult,
    Status,
)


async def get(stack: Any, route: str, kind: Any) -> Any:
    response = await stack.control.get(route)
    assert response.status == 200
    return msgspec.json.decode(await response.read(), type=kind)


async def load(stack: Any, **body: Any) -> list[ControlEvent]:
    """Loads, the fake worker obeying at once."""
    asking = asyncio.create_task(stack.control.post("/load", json={"model": "tiny", **body}))
    (await stack.loading()).finish_load()
    return await lines(await asking)


async def lines(response: Any) -> list[ControlEvent]:
    assert response.content_type == "application/x-ndjson"
    return [msgspec.json.decode(line, type=ControlEvent) for line in (await response.read()).splitlines()]


async def test_status_tells_the_daemon(stack: Any) -> None:
    status = await get(stack, "/status", Status)
    assert (status.models, status.presets, status.instances) == (1, 0, 0)
    assert 0 < status.memory_free <= status.memory_total
    stack.services.activity.drain()
    assert (await get(stack, "/status", Status)).state == "draining"


async def test_a_load_tells_progress_and_the_instance(stack: Any) -> None:
    asking = asyncio.create_task(stack.control.post("/load", json={"model": "tiny", "load": {"parallel": 2}}))
    worker = await stack.loading()
    assert worker.request.params.parallel == 2
    worker.on_progress(0.5)
    response = await asking
    assert msgspec.json.decode(await response.content.readline(), type=ControlEvent) == Progress(0.5)
    worker.finish_load()
    *_, done = await lines(response)
    assert isinstance(done, Done) and done.instance is not None
    assert (done.instance.id, done.instance.parallel, done.instance.ttl, done.already) == ("tiny", 2, None, False)
    (row,) = await get(stack, "/instances", list[InstanceRow])
    assert (row.id, row.state) == ("tiny", "ready")
    (model,) = await get(stack, "/models", list[ModelRow])
    assert (model.key, model.loaded, model.has_template) == ("tiny", ["tiny"], True)


async def test_an_identifier_is_a_name_to_ask_for(stack: Any) -> None:
    await load(stack, load={"context_length": 512}, identifier="mine")
    answering = asyncio.create_task(stack.client.post("/v1/completions", json={"model": "mine", "prompt": "x"}))
    (worker,) = stack.loaded
    (sequence,) = await stack.generating(worker)
    worker.answer(sequence, "served")
    answer = await (await answering).json()
    assert (answer["model"], answer["choices"][0]["text"]) == ("mine", "served")
    listed = await (await stack.client.get("/v1/models")).json()
    assert "mine" in {model["id"] for model in listed["data"]}


async def test_what_is_loaded_by_hand_serves_requests_for_its_name(stack: Any) -> None:
    await load(stack, load={"context_length": 512})
    answering = asyncio.create_task(stack.client.post("/v1/completions", json={"model": "tiny", "prompt": "x"}))
    (worker,) = stack.loaded
    (sequence,) = await stack.generating(worker)
    worker.answer(sequence)
    assert (await answering).status == 200
    assert stack.loaded == [worker]


async def test_a_failed_load_is_a_failure_line(stack: Any) -> None:
    asking = asyncio.create_task(stack.control.post("/load", json={"model": "tiny"}))
    (await stack.loading()).fail_load(LoadFailed("The file is no model."))
    *_, last = await lines(await asking)
    assert isinstance(last, Failure)
    assert (last.code, last.message) == ("load_failed", "The file is no model.")


async def test_a_load_goes_on_when_its_caller_leaves(stack: Any) -> None:
    asking = asyncio.create_task(stack.control.post("/load", json={"model": "tiny"}))
    worker = await stack.loading()
    (await asking).close()
    await stack.control.get("/status")
    worker.finish_load()
    assert [row.state for row in await get(stack, "/instances", list[InstanceRow])] == ["ready"]


async def test_an_estimate_loads_nothing(stack: Any) -> None:
    response = await stack.control.post("/load", json={"model": "tiny", "estimate_only": True})
    estimate = msgspec.json.decode(await response.read(), type=Estimate)
    assert estimate.total >= estimate.weights > 0
    assert stack.loaded == []


@pytest.mark.parametrize(
    ("route", "body", "status", "code"),
    [
        ("/load", {"model": "nothing"}, 404, "model_not_found"),
        ("/load", {"model": "tiny", "load": {"paralel": 2}}, 400, "invalid_request"),
        ("/load", {"model": "tiny", "load": {"parallel": "many"}}, 400, "invalid_request"),
        ("/load", {}, 400, "invalid_request"),
        ("/load", [], 400, "invalid_request"),
        ("/unload", {"id": "nothing"}, 404, "instance_not_found"),
        ("/unload", {}, 400, "invalid_request"),
        ("/unload", {"id": "tiny", "all": True}, 400, "invalid_request"),
        ("/nothing", {}, 404, "unknown_route"),
        ("/status", {}, 405, "method_not_allowed"),
    ],
)
async def test_refusals_are_failures(stack: Any, route: str, body: Any, status: int, code: str) -> None:
    response = await stack.control.post(route, json=body)
    assert response.status == status
    assert msgspec.json.decode(await response.read(), type=Failure).code == code


async def test_the_clients_api_is_there_in_its_own_shape(stack: Any) -> None:
    assert (await (await stack.control.get("/v1/models")).json())["data"][0]["id"] == "tiny"
    response = await stack.control.get("/v1/models/nothing")
    assert (await response.json())["error"]["code"] == "model_not_found"


async def test_unload_ends_instances(stack: Any) -> None:
    await load(stack)
    response = await stack.control.post("/unload", json={"id": "tiny"})
    assert await response.json() == ["tiny"]
    await load(stack)
    response = await stack.control.post("/unload", json={"all": True})
    assert await response.json() == ["tiny"]
    assert await get(stack, "/instances", list[InstanceRow]) == []


async def test_presets_are_told_with_what_is_wrong(stack: Any, tmp_path: Path) -> None:
    presets = tmp_path / "presets"
    (presets / "good.toml").write_text('model = "tiny"\naliases = ["fine"]\n[sampling]\ntemperature = 0.5\n')
    (presets / "bad.toml").write_text('model = "tiny"\n[sampling]\ntemprature = 1\n')
    checked = msgspec.json.decode(await (await stack.control.post("/presets/check")).read(), type=list[ProblemRow])
    assert [(problem.file, problem.line) for problem in checked] == [(str(presets / "bad.toml"), 3)]
    assert await get(stack, "/presets", list[PresetRow]) == []  # a check changes nothing
    reloaded = msgspec.json.decode(await (await stack.control.post("/reload")).read(), type=ReloadResult)
    assert "good" in reloaded.changed and len(reloaded.problems) == 1
    rows = {row.name: row for row in await get(stack, "/presets", list[PresetRow])}
    assert (rows["good"].aliases, rows["good"].serving, rows["good"].problems) == (["fine"], True, [])
    assert not rows["bad"].serving and rows["bad"].problems[0].line == 3
    detail = await get(stack, "/presets/fine?effective=1", PresetDetail)
    assert (detail.name, detail.text) == ("good", (presets / "good.toml").read_text())
    assert detail.effective and detail.origin
    assert not (await get(stack, "/presets/good", PresetDetail)).effective
    assert (await stack.control.get("/presets/nothing")).status == 404


async def test_a_preset_without_its_model_is_wrong_for_the_list_and_for_the_check(stack: Any, tmp_path: Path) -> None:
    file = tmp_path / "presets" / "later.toml"
    file.write_text('model = "owner/fetched-later"\n')
    await stack.control.post("/reload")
    (row,) = await get(stack, "/presets", list[PresetRow])
    checked = msgspec.json.decode(await (await stack.control.post("/presets/check")).read(), type=list[ProblemRow])
    assert row.problems == checked
    assert [(problem.file, problem.key) for problem in checked] == [(str(file), "model")]


async def test_a_preset_whose_file_became_a_pipe_is_told_without_waiting(stack: Any, tmp_path: Path) -> None:
    file = tmp_path / "presets" / "good.toml"
    file.write_text('model = "tiny"\n')
    await stack.control.post("/reload")
    file.unlink()
    os.mkfifo(file)
    detail = await get(stack, "/presets/good", PresetDetail)
    assert detail.text == f"# {file}: this is not a regular file"


async def test_events_tell_loads_and_reloads(stack: Any, tmp_path: Path) -> None:
    response = await stack.control.get("/events")
    await load(stack)
    seen: list[Any] = []
    while not any(event.get("instance", {}).get("state") == "ready" for event in seen):
        seen.append(json.loads(await response.content.readline()))
    (tmp_path / "presets" / "new.toml").write_text('model = "tiny"\n')
    await stack.control.post("/reload")
    while True:
        event = msgspec.json.decode(await response.content.readline(), type=ControlEvent)
        if isinstance(event, PresetsChanged):
            break
    assert event.changed == ["new"]
    response.close()


async def test_events_end_with_the_pool(stack: Any) -> None:
    response = await stack.control.get("/events")
    await stack.services.pool.stop()
    await asyncio.wait_for(response.read(), 5)
