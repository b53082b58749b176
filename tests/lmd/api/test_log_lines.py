"""What the log tells of requests, and what it never tells."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.conftest import Daemon, StartDaemon
from tests.lmd.client import eventually

SECRET = "xyzzy-plugh"


def ask(daemon: Daemon, path: str, body: Any, identifier: str) -> None:
    parts = urlsplit(daemon.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    headers = {"Content-Type": "application/json", "X-Request-Id": identifier, "Authorization": f"Bearer {SECRET}"}
    connection.request("POST", path, body if isinstance(body, bytes) else json.dumps(body), headers)
    response = connection.getresponse()
    assert response.headers["X-Request-Id"] == identifier
    response.read()
    connection.close()


def records(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(line) for line in daemon.log.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def lmd(start_daemon: StartDaemon) -> Daemon:
    return start_daemon(config='[log]\nformat = "json"\nlevel = "debug"\n')


def test_one_record_with_fields_tells_of_a_request(lmd: Daemon) -> None:
    body = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "stream": True}
    ask(lmd, "/v1/chat/completions", body, "told")

    def told() -> list[dict[str, Any]]:
        return [one for one in records(lmd) if one.get("request_id") == "told" and one["logger"] == "lmd.access"]

    assert eventually(lambda: bool(told()))  # the line is written after the answer
    (record,) = told()
    assert (record["model"], record["instance"], record["status"]) == ("tiny-chat", "tiny-chat", 200)
    assert (record["client"], record["completion_tokens"]) == ("127.0.0.1", 3)
    assert 0 < record["ttft"] <= record["duration"]
    assert record["prompt_tokens"] > 3


def test_nothing_that_clients_say_is_logged_even_for_debugging(lmd: Daemon) -> None:
    said = [{"role": "user", "content": SECRET}]
    tool = {"type": "function", "function": {"name": "f", "description": SECRET, "parameters": {"x": SECRET}}}
    for path, body in (
        ("/v1/chat/completions", {"model": "tiny-chat", "messages": said, "max_tokens": 2}),
        ("/v1/chat/completions", {"model": "tiny-chat", "messages": said, "max_tokens": 2, "stream": True}),
        ("/v1/chat/completions", {"model": "tiny-chat", "messages": said, "tools": [tool], "max_tokens": 2}),
        ("/v1/chat/completions", {"model": "tiny-chat", "messages": said, "temperature": SECRET}),
        ("/v1/chat/completions", {"model": "tiny-chat", "messages": [{"role": SECRET, "content": 1}]}),
        ("/v1/completions", {"model": "tiny-chat", "prompt": f"{SECRET} " * 5000}),
        ("/v1/messages", {"model": "tiny-chat", "messages": said, "max_tokens": 2}),
        ("/api/v1/chat", {"model": "tiny-chat", "input": SECRET}),
        ("/v1/chat/completions", b'{"' + SECRET.encode()),
    ):
        ask(lmd, path, body, "silent")
    assert eventually(lambda: len([one for one in records(lmd) if one.get("request_id") == "silent"]) >= 9)
    assert SECRET not in lmd.log


def test_a_workers_lines_have_their_level_and_no_prefix(lmd: Daemon) -> None:
    ask(lmd, "/v1/completions", {"model": "tiny-chat", "prompt": "Hi", "max_tokens": 1}, "loads")
    lines = [one for one in records(lmd) if one["logger"] == "lmd.worker"]
    assert {one["level"] for one in lines} >= {"debug"}
    assert not [one for one in lines if one["message"].startswith("<")]
