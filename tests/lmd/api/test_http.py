"""What every request meets before a dialect does, over the real port."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

GOOD = {"model": "tiny-chat", "prompt": "Hello", "max_tokens": 1}
JSON = {"Content-Type": "application/json"}


def ask(
    daemon: Any, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], Any]:
    parts = urlsplit(daemon.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection.request(method, path, raw, headers if headers is not None else JSON)
    response = connection.getresponse()
    said = response.read()
    connection.close()
    content = json.loads(said) if response.headers.get_content_type() == "application/json" and said else said
    return response.status, {name.lower(): value for name, value in response.getheaders()}, content


def error(answer: tuple[int, dict[str, str], Any]) -> tuple[int, Any]:
    status, headers, said = answer
    assert headers["content-type"].startswith("application/json")
    assert set(said) == {"error"}
    assert set(said["error"]) == {"message", "type", "param", "code"}
    return status, said["error"]


def test_an_unknown_route_is_an_error_in_shape(daemon: Any) -> None:
    status, said = error(ask(daemon, "GET", "/v1/nothing"))
    assert (status, said["type"], said["code"]) == (404, "invalid_request_error", "unknown_route")
    assert "/v1/nothing" in said["message"]


def test_a_wrong_method_says_which_are_right(daemon: Any) -> None:
    answer = ask(daemon, "GET", "/v1/chat/completions")
    status, said = error(answer)
    assert status == 405
    assert answer[1]["allow"] == "POST"
    assert "POST" in said["message"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_another_content_type_is_refused(daemon: Any, content_type: str) -> None:
    status, said = error(ask(daemon, "POST", "/v1/completions", GOOD, {"Content-Type": content_type}))
    assert status == 415
    assert content_type in said["message"]


def test_json_may_name_its_charset(daemon: Any) -> None:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    assert ask(daemon, "POST", "/v1/completions", GOOD, headers)[0] == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"model": "tiny-chat"'])
def test_malformed_json_is_a_400(daemon: Any, body: bytes) -> None:
    status, said = error(ask(daemon, "POST", "/v1/chat/completions", body))
    assert (status, said["type"]) == (400, "invalid_request_error")


def test_a_wrong_field_is_named(daemon: Any) -> None:
    status, said = error(ask(daemon, "POST", "/v1/completions", {**GOOD, "temperature": "hot"}))
    assert (status, said["param"]) == (400, "temperature")


@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_a_404(daemon: Any, stream: bool) -> None:
    status, said = error(ask(daemon, "POST", "/v1/completions", {**GOOD, "model": "gpt-99", "stream": stream}))
    assert (status, said["code"]) == (404, "model_not_found")
    assert "gpt-99" in said["message"]


def test_an_unknown_preset_is_a_404_that_names_the_field(daemon: Any) -> None:
    status, said = error(ask(daemon, "POST", "/v1/completions", {**GOOD, "preset": "nope"}))
    assert (status, said["param"]) == (404, "preset")


@pytest.mark.parametrize("stream", [False, True])
def test_an_overflow_says_the_tokens_and_the_limit_as_clients_expect(daemon: Any, stream: bool) -> None:
    body = {**GOOD, "prompt": "Count to 20. " * 3000, "stream": stream}
    status, said = error(ask(daemon, "POST", "/v1/completions", body))
    assert (status, said["code"]) == (400, "context_length_exceeded")
    assert "maximum context length is 8192 tokens" in said["message"]


def test_a_token_outside_the_vocabulary_is_named(daemon: Any) -> None:
    status, said = error(ask(daemon, "POST", "/v1/completions", {**GOOD, "prompt": [1, 2, 999_999]}))
    assert (status, said["param"]) == (400, "prompt.2")


def test_too_large_a_body_is_refused_and_the_daemon_lives(start_daemon: Any) -> None:
    daemon = start_daemon(arguments=["-o", "server.max_body=64KiB"])
    try:
        status, said = error(ask(daemon, "POST", "/v1/completions", {**GOOD, "prompt": "x" * 100_000}))
        assert status == 413
        assert "max_body" in said["message"]
    except (BrokenPipeError, ConnectionResetError):
        pass  # the answer came and the connection closed before all of the body was sent
    assert ask(daemon, "POST", "/v1/completions", GOOD)[0] == 200


def test_a_foreign_host_is_refused(daemon: Any) -> None:
    status, said = error(ask(daemon, "GET", "/v1/models", headers={"Host": "evil.example"}))
    assert status == 403
    assert "allowed_hosts" in said["message"]


def test_request_ids_are_made_or_taken_over(daemon: Any) -> None:
    _, headers, _ = ask(daemon, "GET", "/v1/models")
    assert headers["x-request-id"].startswith("req_")
    _, headers, _ = ask(daemon, "GET", "/v1/nothing", headers={"X-Request-Id": "mine-1"})
    assert headers["x-request-id"] == "mine-1"
    assert "request_id=mine-1" in daemon.log
    _, headers, _ = ask(daemon, "GET", "/v1/models", headers={"X-Request-Id": "x" * 500})
    assert headers["x-request-id"].startswith("req_")


def test_one_line_tells_of_each_request(daemon: Any) -> None:
    ask(daemon, "POST", "/v1/completions", GOOD, {**JSON, "X-Request-Id": "accounted"})
    (line,) = [line for line in daemon.log.splitlines() if "request_id=accounted" in line and "access" in line]
    for part in ("POST /v1/completions 200", "model=tiny-chat", "instance=", "completion_tokens=1", "ttft="):
        assert part in line


def test_without_cors_origins_no_origin_is_allowed(daemon: Any) -> None:
    _, headers, _ = ask(daemon, "GET", "/v1/models", headers={"Origin": "https://app.example"})
    assert "access-control-allow-origin" not in headers
    status, headers, _ = ask(
        daemon,
        "OPTIONS",
        "/v1/completions",
        headers={"Origin": "https://app.example", "Access-Control-Request-Method": "POST"},
    )
    assert status == 403
    assert "access-control-allow-origin" not in headers


def test_listed_origins_may_read_answers_streams_and_errors(start_daemon: Any) -> None:
    daemon = start_daemon(arguments=["-o", 'server.cors_origins=["https://app.example"]'])
    ours = {**JSON, "Origin": "https://app.example"}
    for body in (GOOD, {**GOOD, "stream": True}, {**GOOD, "model": "nope"}):
        _, headers, _ = ask(daemon, "POST", "/v1/completions", body, ours)
        assert headers["access-control-allow-origin"] == "https://app.example"
        assert "Origin" in headers["vary"]
    preflight = {**ours, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    status, headers, _ = ask(daemon, "OPTIONS", "/v1/completions", headers=preflight)
    assert status == 204
    assert headers["access-control-allow-headers"] == "authorization"
    _, headers, _ = ask(daemon, "GET", "/v1/models", headers={"Origin": "https://other.example"})
    assert "access-control-allow-origin" not in headers


def test_health_is_ok_while_serving(daemon: Any) -> None:
    assert ask(daemon, "GET", "/health")[0] == 200
