"""The document at /openapi.json is true: whatever it allows to be sent is answered as it says, and never with a 500."""

import json
import urllib.request
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lmd.api.app import OPERATIONS, client_routes
from lmd.api.openapi import document


def no_500(ctx: Any, response: Any, case: Any) -> None:
    """503 and the like are answers: the machine is full, or lmd stops."""
    assert response.status_code != 500, response.text


CHECKS = [no_500, status_code_conformance, content_type_conformance, response_schema_conformance]

#: Nothing leaves this machine: the hub is a port where nobody listens.
ENVIRON = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": ""}


@pytest.fixture(scope="module")
def api(start_daemon: Any) -> Any:
    daemon = start_daemon(environ=ENVIRON)
    yield daemon
    daemon.stop()


@pytest.fixture(scope="module")
def schema(api: Any) -> Any:
    return schemathesis.openapi.from_url(f"{api.url}/openapi.json")


def test_what_is_served_describes_routes_that_there_are(api: Any) -> None:
    with urllib.request.urlopen(f"{api.url}/openapi.json") as response:
        served = json.load(response)
    assert served == json.loads(json.dumps(document(OPERATIONS)))
    described = {(method.upper(), path) for path, methods in served["paths"].items() for method in methods}
    routed = {(route.method, route.path.replace(":.+", "")) for route in client_routes()}
    assert described <= routed
    # What is not described is the document itself, and what llama-server has beside OpenAI's routes.
    assert {path.split("/")[1] for _, path in routed - described} <= {
        "openapi.json", "rerank", "reranking", "tokenize", "detokenize", "apply-template", "v1", "api", "metrics",
    }  # fmt: skip


def test_every_reference_leads_somewhere() -> None:
    described = document(OPERATIONS)
    names = set(described["components"]["schemas"])

    def references(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert references(described) == {f"#/components/schemas/{name}" for name in names}


def made_real(case: Any) -> None:
    """Nearly every name that is made up is unknown: name the model that is there, and keep answers short."""
    if isinstance(case.body, dict):
        if "model" in case.body:
            case.body["model"] = "tiny-chat"
        for limit in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
            if isinstance(case.body.get(limit), int):
                case.body[limit] = max(1, min(case.body[limit], 8))
        if isinstance(case.body.get("n"), int):
            case.body["n"] = min(case.body["n"], 3)
        if "input" in case.body:
            case.body.setdefault("max_output_tokens", 8)
        elif "messages" in case.body or "prompt" in case.body:
            case.body.setdefault("max_tokens", 8)
    if isinstance(case.path_parameters, dict) and "id" in case.path_parameters:
        case.path_parameters["id"] = "tiny-chat"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: f"{one.method} {one.path}")
def test_every_answer_is_as_described(schema: Any, operation: Any) -> None:
    loads = operation.path.endswith("/load")
    strategy = schema[operation.path][operation.method].as_strategy()

    @settings(
        max_examples=6 if operation.body is None or loads else 20,
        phases=[Phase.generate],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy, st.booleans())
    def check(case: Any, real: bool) -> None:
        if real:
            made_real(case)
        case.call_and_validate(checks=CHECKS, timeout=60)

    check()
