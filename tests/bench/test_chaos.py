"""The chaos run's judgement: what counts as an answer, as a refusal, and as a fault."""

import http.client
import json
import random
import shutil
from collections import Counter
from pathlib import Path

import pytest

from tests.bench.chaos import GROWTH_BYTES, MODELS, Outcome, described
from tests.bench.chaos_clients import Fault, Tally, verdict
from tests.bench.chaos_vandals import PRESET_DEEDS, SPOILED, Vandals, remove
from tests.bench.endurance import Held
from tests.bench.supervised import Supervised


def answer(status: int, body: str, kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


ERROR = json.dumps({"error": {"message": "The worker died.", "code": "worker_died"}})
EVENT = f"event: error\ndata: {ERROR}\n\n"


@pytest.mark.parametrize(
    ("came", "expected"),
    [
        (answer(200, "{}"), "answered"),
        (answer(429, ERROR), "refused"),
        (answer(200, 'data: {"x": 1}\n\ndata: [DONE]\n\n', "text/event-stream"), "answered"),
        (answer(200, 'event: message_stop\ndata: {"type": "message_stop"}\n\n', "text/event-stream"), "answered"),
        (answer(200, 'data: {"x": 1}\n\n' + EVENT, "text/event-stream"), "ended with an error"),
        (answer(200, f"data: {ERROR}\n\ndata: [DONE]\n\n", "text/event-stream"), "ended with an error"),
    ],
)
def test_ends_that_are_in_order(came: bytes, expected: str) -> None:
    assert verdict(came) == expected


@pytest.mark.parametrize(
    "came",
    [
        answer(400, "oops"),
        answer(500, '{"error": {"message": ""}}'),
        answer(500, '{"error": {"message": "Something went wrong inside lmd.", "code": "internal_error"}}'),
        answer(200, 'data: {"x": 1}\n\n', "text/event-stream"),
    ],
)
def test_ends_that_are_faults(came: bytes) -> None:
    with pytest.raises(Fault):
        verdict(came)


@pytest.mark.parametrize(
    "came", [b"", answer(200, '{"a": 1}')[:-1], b"rubbish\r\n\r\n", answer(200, "", "text/event-stream")]
)
def test_answers_that_break_off_are_for_the_caller_to_judge(came: bytes) -> None:
    with pytest.raises((EOFError, http.client.HTTPException)):
        verdict(came)


@pytest.fixture
def vandals(tmp_path: Path) -> Vandals:
    folder = tmp_path / "disk"
    folder.mkdir()
    daemon = Supervised(folder)
    shutil.copy(daemon.config, tmp_path / "lmd.toml.right")
    for model in MODELS:
        (folder / "models" / f"{model}.gguf").write_bytes(b"x")
    (folder / "presets.d" / "steady.toml").write_text("")
    return Vandals(daemon, random.Random(0), None, False)


@pytest.mark.parametrize("deed", sorted(PRESET_DEEDS))
def test_every_spoiled_preset_is_mended(vandals: Vandals, deed: str) -> None:
    presets = vandals.daemon.folder / "presets.d"
    path = presets / f"{SPOILED[0]}.toml"
    PRESET_DEEDS[deed](path, random.Random(1))
    remove(path)
    PRESET_DEEDS[deed](path, random.Random(1))
    vandals.mend()
    assert [one.name for one in presets.iterdir()] == ["steady.toml"]


def test_models_and_settings_are_mended(vandals: Vandals) -> None:
    folder = vandals.daemon.folder
    (folder / "models" / "model-c.gguf").rename(folder / "models" / "model-c.away")
    (folder / "models" / "junk.gguf").symlink_to(folder / "models" / "junk.gguf")
    (folder / "filler").write_bytes(b"x")
    vandals.daemon.config.write_text("[server")
    vandals.mend()
    assert sorted(one.name for one in (folder / "models").iterdir()) == [f"{model}.gguf" for model in MODELS]
    assert not (folder / "filler").exists()
    assert "port = " in vandals.daemon.config.read_text()


def outcome(vandals: Vandals, *held: Held, faults: list[str] | None = None) -> Outcome:
    tally = Tally(asked=Counter(whole=3), ended=Counter(answered=3), faults=faults or [])
    return Outcome(tally, vandals, held=list(held))


HELD = Held(processes=2, files=20, threads=5, rss=100 << 20)


def test_what_grew_or_got_lost_is_a_fault(vandals: Vandals) -> None:
    assert outcome(vandals, HELD, HELD).faults() == []
    more = Held(processes=3, files=21, threads=6, rss=HELD.rss + GROWTH_BYTES + 1)
    assert len(outcome(vandals, HELD, more).faults()) == 4
    lost = outcome(vandals, HELD, HELD)
    lost.tally.asked["whole"] += 1
    assert lost.faults() == ["1 requests came to no end"]
    assert "too short" in outcome(vandals, HELD).faults()[0]


def test_the_report_tells_faults_and_what_was_not_tried(vandals: Vandals) -> None:
    bad = outcome(vandals, HELD, HELD, faults=["whole: no end\nand more"])
    bad.could_not.append("clock jumps (no C compiler)")
    text = described(bad)
    assert "**Faults**: whole: no end." in text and "Not tried: clock jumps" in text
    assert "nothing was left behind" in described(outcome(vandals, HELD, HELD))
