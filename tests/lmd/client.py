"""A client of the real daemon, and what tests wait for in the world outside: it tells no events."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

LONG = {
    "model": "tiny-chat",
    "prompt": "<|im_start|>user\nCount to 40.<|im_end|>\n<|im_start|>assistant\n",
    "stream": True,
    "ignore_eos": True,
    "max_tokens": 6000,
}
"""Keeps a stream open for as long as a test needs: many seconds of tokens."""
SHORT = {**LONG, "ignore_eos": False, "stream": False, "temperature": 0}


def post(url: str, body: Any, path: str = "/v1/completions") -> HTTPResponse:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    return connection.getresponse()


def get(url: str, path: str) -> tuple[int, Any]:
    parts = urlsplit(url)
    connection = HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("GET", path)
    response = connection.getresponse()
    return response.status, json.loads(response.read())


def events(response: HTTPResponse) -> Iterator[Any]:
    """The stream's data, parsed; "[DONE]" as it is."""
    for line in response:
        if line.startswith(b"data: "):
            data = line.removeprefix(b"data: ").strip()
            yield "[DONE]" if data == b"[DONE]" else json.loads(data)


def control(path: Path, route: str, body: Any = None) -> Any:
    """The answer of the control socket: its JSON, or the last line of a stream. With a ``body`` it is a POST."""
    method, said = ("GET", "") if body is None else ("POST", json.dumps(body))
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.fspath(path))
        head = f"{method} {route} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(said)}\r\n\r\n"
        connection.sendall((head + said).encode())
        with connection.makefile("rb") as answer:
            return json.loads(answer.read().partition(b"\r\n\r\n")[2].splitlines()[-1])


@contextmanager
def following(path: Path, route: str, seconds: float) -> Iterator[Iterator[Any]]:
    """A stream of the control socket, event by event, each of which has to come within ``seconds``."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(seconds)
        connection.connect(os.fspath(path))
        connection.sendall(f"GET {route} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        with connection.makefile("rb") as answer:
            while answer.readline().strip():  # its head: from here on nothing is missed
                pass
            yield (json.loads(line) for line in answer)


def eventually(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether ``condition`` comes true; polls the outside world, which tells no events."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return condition()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
