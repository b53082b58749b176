"""The fuzzer finds what is planted, draws the same again, and its targets hold for a moment."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import strategies as st

from lmd.api import chats, downloads, library, tokens
from lmd.api import control as control_routes
from lmd.api.app import client_routes
from tests.bench.fuzz import Result, add_up, described, fuzz
from tests.bench.fuzz_inputs import CLIENT_ROUTES, CONTROL_ROUTES
from tests.bench.fuzz_targets import Surprise, Target, pure_targets
from tests.bench.fuzz_wire import judge


def planted(case: int) -> None:
    if case > 1000:
        raise ValueError("planted")


def test_a_planted_fault_is_found_once_made_small_and_told_with_its_seed() -> None:
    result = fuzz(Target("planted", "planted", st.integers(), planted), seconds=1.0, seed=7)
    (text,) = result.found.values()
    assert "seed 7" in text and "planted" in text
    assert "made small: 1001" in text
    assert "1 finding" in described([result], 7) and "test_fuzz.py" in described([result], 7)


def test_what_holds_has_no_findings() -> None:
    result = fuzz(Target("fine", "fine", st.integers(), lambda case: None), seconds=0.2, seed=0)
    assert result.inputs > 0 and not result.found
    assert "no findings" in described([result, Result("other")], 0)


def test_pieces_add_up_to_one_account(tmp_path: Path) -> None:
    totals = tmp_path / "totals"
    add_up([Result("a", 3, 60.0, found={"x": "seed 1"}), Result("b", 1, 1.0)], totals)
    sums = add_up([Result("a", 4, 60.0)], totals)
    assert [(one.title, one.inputs, one.cpu, list(one.found)) for one in sums] == [
        ("a", 7, 120.0, ["x"]),
        ("b", 1, 1.0, []),
    ]


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    yield {target.name: target for target in pure_targets(tmp_path_factory.mktemp("fuzz"))}


@pytest.mark.parametrize("name", ["gguf", "channel", "worker", "bodies"])
def test_each_reader_holds_for_a_moment(targets: dict[str, Target], name: str) -> None:
    result = fuzz(targets[name], seconds=1.0, seed=1)
    assert result.inputs > 0
    assert not result.found


def test_routes_are_lmds_own() -> None:
    control = [*control_routes.routes(), *downloads.routes(), *library.routes(), *chats.routes(), *tokens.routes()]
    for routes, known in ((CLIENT_ROUTES, client_routes()), (CONTROL_ROUTES, control)):
        for method, path, _ in routes:
            if path != "/metrics":
                assert any(one.method == method and _fits(one.path, path.split("?")[0]) for one in known), path


def _fits(pattern: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\{\w+(?::([^}]*))?\}", lambda m: f"(?:{m[1] or '[^/]+'})", pattern), path) is not None


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (500, '{"error": {"message": "Something went wrong inside lmd.", "code": "internal_error"}}'),
        (400, "oops"),
        (400, '{"error": {"message": ""}}'),
        (500, json.dumps({"error": {"message": "The worker of 'x' died.", "code": "worker_died"}})),
        (200, "{"),
    ],
)
def test_an_answer_that_must_not_be_is_a_surprise(status: int, text: str) -> None:
    with pytest.raises((Surprise, ValueError)):
        judge("POST", status, "application/json", text)


def test_refusals_in_both_shapes_are_none() -> None:
    judge("POST", 400, "application/json", '{"error": {"message": "No."}}')
    judge("POST", 404, "application/json", '{"type": "error", "code": "not_found", "message": "No."}')
