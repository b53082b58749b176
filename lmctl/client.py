"""The control socket's client: HTTP with JSON over a Unix socket, blocking, on the standard library alone."""

import http.client
import os
import socket
import stat
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from lmctl.errors import CommandError, Unreachable
from lmctl.streams import LineDecoder, ServerEvent, SseDecoder
from lmd.protocol import ControlEvent, Failure, default_sockets

T = TypeVar("T")

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 60.0
"""For plain requests. Streams wait as long as the daemon keeps its end open."""
_PIECE = 65536
_START = "Start it with 'systemctl start lmd', or by hand with 'lmd'."
_JOURNAL = "See its journal: journalctl -u lmd -e"


def socket_path(said: str | None, environ: Mapping[str, str]) -> Path:
    """Where the daemon listens: what was said, else ``LMD_SOCKET``, else the first default place with a socket.

    Without any socket: the place where this user's daemon would have one.
    """
    if named := said or environ.get("LMD_SOCKET"):
        return Path(named).expanduser()
    places = [Path(place) for place in default_sockets(environ, os.getuid())]
    return next((place for place in places if _is_socket(place)), places[0])


def _is_socket(path: Path) -> bool:
    try:
        return stat.S_ISSOCK(path.stat().st_mode)
    except OSError:
        return False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, seconds: float | None) -> None:
        super().__init__("lmd", timeout=CONNECT_SECONDS)
        self._path = path
        self._seconds = seconds

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(CONNECT_SECONDS)
        self.sock.connect(os.fspath(self._path))
        self.sock.settimeout(self._seconds)


class Client:
    """One daemon's control socket. Every call opens a connection of its own and blocks.

    Raises `Unreachable` where no daemon answers, and `CommandError` with the daemon's message, hint and
    code where it refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, route: str, answer: type[T]) -> T:
        return self._plain("GET", route, None, answer)

    def post(self, route: str, body: msgspec.Struct | None, answer: type[T]) -> T:
        return self._plain("POST", route, body, answer)

    def events(
        self,
        method: str,
        route: str,
        body: msgspec.Struct | None = None,
        *,
        on_open: Callable[[], None] | None = None,
    ) -> Generator[ControlEvent, None, None]:
        """The stream's events as they come. A `Failure` is raised, not yielded. ``on_open``: the daemon has begun."""
        decoder = msgspec.json.Decoder(ControlEvent)
        lines = LineDecoder()
        with self._answer(method, route, body, None) as response:
            if on_open is not None:
                on_open()
            for line in (line for piece in _pieces(response, lines) for line in piece if line.strip()):
                event = _decode(decoder, line, route)
                if isinstance(event, Failure):
                    raise _refused(event)
                yield event

    def server_events(self, route: str, body: object) -> Generator[ServerEvent, None, None]:
        """The server-sent events that answer ``body``."""
        with self._answer("POST", route, body, None) as response:
            for piece in _pieces(response, SseDecoder()):
                yield from piece

    def _plain(self, method: str, route: str, body: object, answer: type[T]) -> T:
        with self._answer(method, route, body, ANSWER_SECONDS) as response:
            raw = response.read()
        return _decode(msgspec.json.Decoder(answer), raw, route)

    @contextmanager
    def _answer(
        self, method: str, route: str, body: object, seconds: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, seconds)
        try:
            with self._told(route):
                self._connect(connection)
                raw = b"" if body is None else msgspec.json.encode(body)
                # Host is checked by the daemon's own rules for names; this one is always right.
                headers = {"Host": "localhost", "Content-Type": "application/json"}
                connection.request(method, route, raw or None, headers)
                response = connection.getresponse()
                if response.status >= http.client.BAD_REQUEST:
                    raise _refused(_failure(response.status, response.read()))
                yield response
        finally:
            connection.close()

    def _connect(self, connection: _UnixConnection) -> None:
        try:
            connection.connect()
        except PermissionError as exc:
            raise Unreachable(
                f"You may not use lmd's control socket {self.path}.",
                hint="Run lmctl as root, or join the group that [control] names: sudo usermod -aG lmd $USER",
            ) from exc
        except FileNotFoundError as exc:
            raise Unreachable(f"lmd is not running: there is no socket at {self.path}.", hint=_START) from exc
        except ConnectionRefusedError as exc:
            raise Unreachable(f"lmd is not running: nothing listens on {self.path}.", hint=_START) from exc
        except TimeoutError as exc:
            raise Unreachable(
                f"lmd does not accept connections on {self.path}.", hint="See 'systemctl status lmd' and its journal."
            ) from exc
        except OSError as exc:
            raise Unreachable(
                f"Cannot connect to {self.path}: {exc.strerror or exc}.", hint="Name lmd's socket with --socket PATH."
            ) from exc

    @contextmanager
    def _told(self, route: str) -> Iterator[None]:
        """Connection errors below become ours."""
        try:
            yield
        except TimeoutError as exc:
            raise CommandError(
                f"lmd did not answer {route} within {ANSWER_SECONDS:.0f} s.",
                hint="See its journal: journalctl -u lmd -e",
            ) from exc
        except (OSError, http.client.HTTPException) as exc:
            raise CommandError("lmd closed the connection before its answer was whole.", hint=_JOURNAL) from exc


def _pieces(response: http.client.HTTPResponse, decoder: LineDecoder | SseDecoder) -> Iterator[list[Any]]:
    while chunk := response.read1(_PIECE):
        yield decoder.feed(chunk)
    yield decoder.flush()


def _decode(decoder: msgspec.json.Decoder[T], raw: bytes, route: str) -> T:
    try:
        return decoder.decode(raw)
    except msgspec.MsgspecError as exc:
        raise CommandError(
            f"lmd answered {route} with something that this lmctl does not understand: {exc}",
            hint="Are lmctl and lmd of one version? Compare 'lmctl --version' with 'lmctl status'.",
        ) from exc


def _failure(status: int, raw: bytes) -> Failure:
    """What a refusal's body says: a `Failure`, or an error of the HTTP API in OpenAI's shape."""
    try:
        return msgspec.json.decode(raw, type=Failure)
    except msgspec.MsgspecError:
        pass
    return api_failure(raw) or Failure(
        code="http_error", message=f"lmd answered {status} {http.client.responses.get(status, '')}".rstrip() + "."
    )


def api_failure(raw: bytes | str) -> Failure | None:
    """The error in OpenAI's shape that ``raw`` holds, or None."""
    try:
        error = msgspec.json.decode(raw)["error"]
        return Failure(code=str(error.get("code") or error.get("type") or "failed"), message=str(error["message"]))
    except (msgspec.MsgspecError, KeyError, TypeError, AttributeError):
        return None


def _refused(failure: Failure) -> CommandError:
    return CommandError(failure.message, hint=failure.hint, code=failure.code, problems=failure.problems)
