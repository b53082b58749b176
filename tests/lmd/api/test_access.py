"""Tokens, over the real port and the real lmctl; origins; limits; clients that stall or speak no HTTP."""

import http.client
import json
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from lmd.api.app import client_app
from lmd.protocol import Failure
from tests.conftest import Daemon, StartDaemon
from tests.lmd.api.conftest import Stack

LMCTL = Path(sys.executable).with_name("lmctl")
GOOD = {"model": "tiny-chat", "prompt": "Hello", "max_tokens": 1}
CHAT = {"model": "tiny-chat", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}


def ask(
    daemon: Daemon, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, dict[str, str], Any]:
    parts = urlsplit(daemon.url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    raw = None if body is None else json.dumps(body).encode()
    connection.request(method, path, raw, {"Content-Type": "application/json", **(headers or {})})
    response = connection.getresponse()
    said = response.read()
    connection.close()
    content = json.loads(said) if response.headers.get_content_type() == "application/json" and said else said
    return response.status, {name.lower(): value for name, value in response.getheaders()}, content


def lmctl(daemon: Daemon, *args: str, code: int = 0) -> str:
    env = {**os.environ, "LMD_SOCKET": str(daemon.socket)}
    ran = subprocess.run([LMCTL, *args], env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == code, ran.stderr
    return ran.stdout if code == 0 else ran.stderr


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


@pytest.fixture(scope="module")
def guarded(start_daemon: StartDaemon) -> Daemon:
    return start_daemon(arguments=["-o", "server.auth=on"])


# ── tokens ────────────────────────────────────────────────────────────────────────────────────


def test_without_a_token_nothing_is_told_but_health(guarded: Daemon) -> None:
    for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/metrics"), ("GET", "/nothing")):
        status, headers, said = ask(guarded, method, path, GOOD if method == "POST" else None)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert said["error"]["code"] == "invalid_api_key"
    assert ask(guarded, "GET", "/health")[0] == 200


def test_a_token_opens_the_door_at_once_and_closes_it_when_revoked(guarded: Daemon) -> None:
    secret = lmctl(guarded, "token", "create", "alice").strip()
    assert len(secret) > 40
    for headers in (bearer(secret), {"authorization": f"bearer  {secret}"}, {"x-api-key": secret}):
        assert ask(guarded, "POST", "/v1/completions", GOOD, headers)[0] == 200
    for wrong in (secret[:-1], secret + "x", "lmd_", "é"):
        assert ask(guarded, "GET", "/v1/models", headers=bearer(wrong.encode().decode("latin-1")))[0] == 401
    assert lmctl(guarded, "token", "revoke", "alice") == "revoked alice\n"
    assert ask(guarded, "GET", "/v1/models", headers=bearer(secret))[0] == 401
    assert "no token 'alice'" in lmctl(guarded, "token", "revoke", "alice", code=1)


def test_only_a_hash_is_kept_and_only_for_the_owner(guarded: Daemon) -> None:
    secret = lmctl(guarded, "token", "create", "bob").strip()
    file = guarded.directory / "state" / "tokens.json"
    assert secret not in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert secret not in guarded.log
    rows = json.loads(lmctl(guarded, "token", "ls", "--json"))
    assert next(row for row in rows if row["name"] == "bob")["scopes"] == ["inference"]
    assert secret not in json.dumps(rows)
    assert "bob" in lmctl(guarded, "token", "create", "bob", code=1)


def test_errors_have_the_shape_of_their_dialect(guarded: Daemon) -> None:
    status, _, said = ask(guarded, "POST", "/v1/messages", {})
    assert (status, said["type"], said["error"]["type"]) == (401, "error", "authentication_error")
    status, _, said = ask(guarded, "POST", "/v1/chat/completions", {})
    assert (status, said["error"]["type"]) == (401, "authentication_error")


def test_managing_needs_its_own_scope(guarded: Daemon) -> None:
    plain = lmctl(guarded, "token", "create", "reader").strip()
    manager = lmctl(guarded, "token", "create", "manager", "--scope", "manage").strip()
    body = {"model": "tiny-chat"}
    assert ask(guarded, "POST", "/api/v1/models/load", body, bearer(plain))[0] == 403
    assert ask(guarded, "POST", "/api/v1/models/load", body, bearer(manager))[0] == 200
    status, _, said = ask(guarded, "POST", "/v1/completions", GOOD, bearer(manager))
    assert (status, said["error"]["type"]) == (403, "permission_error")
    assert "no scope" in lmctl(guarded, "token", "create", "x", "--scope", "root", code=1)


def test_an_expired_token_opens_nothing(guarded: Daemon) -> None:
    secret = lmctl(guarded, "token", "create", "soon", "--expires", "250ms").strip()
    deadline = time.monotonic() + 10
    while ask(guarded, "GET", "/v1/models", headers=bearer(secret))[0] == 200:
        assert time.monotonic() < deadline
    assert "expired" in lmctl(guarded, "token", "ls")
    lmctl(guarded, "token", "create", "never", "--expires", "soonish", code=2)


def test_tokens_outlive_the_daemon_and_come_from_a_credential(start_daemon: StartDaemon, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("# of the operator\nops 0123456789abcdef0123 inference,manage\n")
    daemon = start_daemon(arguments=["-o", "server.auth=on"], environ={"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert ask(daemon, "GET", "/v1/models", headers=bearer("0123456789abcdef0123"))[0] == 200
    assert "credential" in lmctl(daemon, "token", "ls")
    assert "credential" in lmctl(daemon, "token", "revoke", "ops", code=1)


def test_lmctl_needs_no_token(guarded: Daemon) -> None:
    assert "tiny-chat" in lmctl(guarded, "ls")
    assert lmctl(guarded, "chat", "tiny-chat", "-p", "Count to 3.")


def test_an_exposed_address_without_tokens_is_refused(tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "lmd", "--host", "0.0.0.0", "--port", "0", "--socket", str(tmp_path / "s")]
    for key in ("state", "cache"):
        arguments += ["-o", f"paths.{key}={tmp_path}/{key}"]
    ran = subprocess.run(
        [*arguments, "--models-dir", str(tmp_path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 1
    assert "auth" in ran.stderr
    assert "allow_insecure" in ran.stderr
    assert not (tmp_path / "s").exists()


def test_an_exposed_address_asks_for_tokens(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(arguments=["--host", "0.0.0.0", "-o", "server.auth=on"])
    assert ask(daemon, "GET", "/v1/models")[0] == 401
    secret = lmctl(daemon, "token", "create", "a").strip()
    assert ask(daemon, "GET", "/v1/models", headers=bearer(secret))[0] == 200


async def test_auth_that_is_switched_off_later_stays_on_where_others_can_reach(stack: Stack) -> None:
    app = client_app(stack.services, lambda: frozenset({"0.0.0.0"}))
    async with TestClient(TestServer(app)) as client:
        assert (await client.get("/v1/models")).status == 401
    assert (await stack.client.get("/v1/models")).status == 200


# ── origins ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1"])
def test_a_page_of_another_origin_cannot_even_ask(daemon: Daemon, origin: str) -> None:
    status, _, said = ask(daemon, "POST", "/v1/completions", GOOD, {"Origin": origin})
    assert status == 403
    assert "cors_origins" in said["error"]["message"]


def test_a_page_of_this_server_may(daemon: Daemon) -> None:
    assert ask(daemon, "POST", "/v1/completions", GOOD, {"Origin": daemon.url})[0] == 200


# ── limits ────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def narrow(start_daemon: StartDaemon) -> Daemon:
    return start_daemon(
        config='[limits]\nrequests_per_client = 1\nmessages = 2\ntools = 1\nschema_size = "1KiB"\n'
        'text_size = "1KiB"\nheader_size = "2KiB"\nreceive_timeout = "1s"\nstall_timeout = "1s"\n'
    )


def messages(n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": "x"}] * n


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("more", "param", "setting"),
    [
        ({"messages": messages(3)}, "messages", "messages"),
        ({"tools": [tool("a"), tool("b")]}, "tools", "tools"),
        ({"messages": [{"role": "user", "content": "é" * 600}]}, "messages.0.content", "text_size"),
        ({"tools": [tool("a", b={"enum": ["x" * 1024]})]}, "tools.0.function.parameters", "schema_size"),
    ],
)
def test_too_large_a_request_names_what_is_too_large(narrow: Daemon, more: Any, param: str, setting: str) -> None:
    status, _, said = ask(narrow, "POST", "/v1/chat/completions", {**CHAT, **more})
    assert (status, said["error"]["param"]) == (400, param)
    assert f"[limits] {setting}" in said["error"]["message"]


def test_what_is_within_the_limits_passes(narrow: Daemon) -> None:
    assert (
        ask(narrow, "POST", "/v1/chat/completions", {**CHAT, "messages": messages(2), "tools": [tool("a")]})[0] == 200
    )


def test_a_client_with_enough_requests_open_is_told_to_come_again(narrow: Daemon) -> None:
    parts = urlsplit(narrow.url)
    first = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    body = json.dumps({**GOOD, "prompt": "Count to 99.", "max_tokens": 100_000, "ignore_eos": True, "stream": True})
    first.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    assert first.getresponse().status == 200  # it streams
    status, headers, said = ask(narrow, "GET", "/v1/models")
    assert (status, said["error"]["type"]) == (429, "rate_limit_error")
    assert int(headers["retry-after"]) >= 1
    assert ask(narrow, "GET", "/health")[0] == 200
    first.close()
    deadline = time.monotonic() + 20
    while ask(narrow, "GET", "/v1/models")[0] != 200:
        assert time.monotonic() < deadline


def connected(daemon: Daemon) -> socket.socket:
    parts = urlsplit(daemon.url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=30)


def everything(connection: socket.socket) -> bytes:
    read = b""
    while True:
        try:
            piece = connection.recv(65536)
        except ConnectionResetError:
            return read
        if not piece:
            return read
        read += piece


def test_a_head_that_does_not_come_is_not_waited_for(narrow: Daemon) -> None:
    for sent in (b"", b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nX-Slow: "):
        with connected(narrow) as connection:
            connection.sendall(sent)
            assert everything(connection) == b""  # and the recv did not time out


def test_a_body_that_does_not_come_is_a_408(narrow: Daemon) -> None:
    with connected(narrow) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100\r\n\r\n{"
        )
        said = everything(connection)
    assert said.startswith(b"HTTP/1.1 408 ")
    assert b'"request_timeout"' in said


def test_a_client_that_reads_nothing_is_cut_off_and_others_go_on(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(config='[limits]\nstall_timeout = "1s"\n')
    # The answer is larger than what the kernel buffers of it.
    body = json.dumps({"model": "tiny-chat", "content": "1 2 " * 500_000}).encode()
    with connected(daemon) as slow:
        head = "POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        slow.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        deadline = time.monotonic() + 60
        while "is cut off" not in daemon.log:
            assert ask(daemon, "POST", "/v1/completions", GOOD)[0] == 200
            assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n", 400),
        (b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 5000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_no_http_gets_an_error_in_shape(narrow: Daemon, raw: bytes, status: int) -> None:
    with connected(narrow) as connection:
        connection.sendall(raw)
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("encoding", [b"Content-Encoding: gzip\r\nContent-Length: 4", b"Transfer-Encoding: chunked"])
def test_a_body_that_is_not_encoded_as_it_says_is_a_400(narrow: Daemon, encoding: bytes) -> None:
    with connected(narrow) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\n" + encoding + b"\r\n\r\nzz{}"
        )
        head, _, body = everything(connection).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == 400
    assert json.loads(body)["error"]["code"] in {"unreadable_body", "bad_request"}
    assert "Traceback" not in narrow.log


@pytest.mark.parametrize("expectation", [b"100-Continue", b"200-ok", b"\xff\xff100"])
def test_a_client_that_expects_something_is_answered(narrow: Daemon, expectation: bytes) -> None:
    body = json.dumps(GOOD).encode()
    with connected(narrow) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Connection: close\r\nExpect: " + expectation + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        said = everything(connection)
    statuses = [int(line.split()[1]) for line in said.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses == ([100, 200] if b"Continue" in expectation else [200])
    assert "Traceback" not in narrow.log


def test_what_is_no_http_gets_an_error_in_the_control_sockets_shape(narrow: Daemon) -> None:
    for raw in (b"BREW /status HTTP/1.1\r\nHost: a\r\n\r\n", b"GET \0/status HTTP/1.1\r\nHost: a\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(narrow.socket))
            connection.sendall(raw)
            head, _, body = everything(connection).partition(b"\r\n\r\n")
        assert int(head.split()[1]) == 400
        assert msgspec.json.decode(body, type=Failure).code == "bad_request"
    assert "Traceback" not in narrow.log
