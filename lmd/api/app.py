"""The two aiohttp applications: the TCP one for clients, and the control one for the Unix socket."""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Sequence
from socket import SO_PEERCRED, SOL_SOCKET
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import HttpVersion11, web
from aiohttp.typedefs import Middleware

from lmd.api import chats, control, downloads, health, library, metrics, native, openapi, tokens
from lmd.api.access import authentication, open_requests
from lmd.api.anthropic import errors as anthropic_errors
from lmd.api.anthropic import routes as anthropic
from lmd.api.completions import errors as openai_errors
from lmd.api.listen import is_exposed
from lmd.api.lmstudio import errors as lmstudio_errors
from lmd.api.lmstudio import v0, v1
from lmd.api.middleware import (
    ErrorShape,
    add_common_headers,
    add_cors_headers,
    cors,
    errors_in_shape,
    host_check,
    origin_check,
    request_records,
)
from lmd.api.openai import routes as openai
from lmd.api.services import SERVICES, Services

if TYPE_CHECKING:
    from lmd.config.settings import Server


def client_routes() -> list[web.RouteDef]:
    """What both applications serve: every dialect, and the health check."""
    return [
        *openai.routes(),
        *anthropic.routes(),
        *v0.routes(),
        *v1.routes(),
        *native.routes(),
        *health.routes(),
        *openapi.routes(OPERATIONS),
    ]


OPERATIONS = (
    *openai.OPERATIONS,
    *anthropic.OPERATIONS,
    *v0.OPERATIONS,
    *v1.OPERATIONS,
    *native.OPERATIONS,
    *health.OPERATIONS,
)

#: Whose shape an error has, by the longest prefix of the path that fits.
_DIALECT_SHAPES: Sequence[tuple[str, ErrorShape]] = (
    ("/v1/", openai_errors.error_body),
    ("/v1/messages", anthropic_errors.error_body),
    ("/api/v0/", openai_errors.error_body),
    ("/api/v1/", lmstudio_errors.error_body),
)
CLIENT_SHAPES: Sequence[tuple[str, ErrorShape]] = (*_DIALECT_SHAPES, ("/", openai_errors.error_body))
CONTROL_SHAPES: Sequence[tuple[str, ErrorShape]] = (*_DIALECT_SHAPES, ("/", control.error_body))


def client_app(services: Services, bound: Callable[[], Collection[str]]) -> web.Application:
    """The HTTP port's application. ``bound`` tells the addresses it really listens on."""

    def server() -> Server:
        return services.config.snapshot.settings.server

    def token_needed() -> bool:
        # The setting may change while the addresses cannot: what was exposed with tokens is never without.
        return server().auth == "on" or (is_exposed(bound()) and not server().allow_insecure)

    middlewares = [
        request_records(_tcp_client),
        metrics.counted(services.metrics),
        cors(lambda: server().cors_origins),
        errors_in_shape(_by_prefix(CLIENT_SHAPES)),
        host_check(lambda: server().allowed_hosts, bound),
        origin_check(lambda: server().cors_origins),
        authentication(services.tokens, token_needed),
        open_requests(lambda: services.config.snapshot.settings.limits),
    ]
    return _app(services, middlewares, [*client_routes(), *metrics.routes(services.metrics)])


def control_app(services: Services) -> web.Application:
    """The control socket's application: its own routes and all of the clients', without Host check and CORS."""
    middlewares = [
        request_records(_unix_client),
        metrics.counted(services.metrics),
        errors_in_shape(_by_prefix(CONTROL_SHAPES)),
    ]
    own = [*control.routes(), *downloads.routes(), *library.routes(), *chats.routes(), *tokens.routes()]
    app = _app(services, middlewares, [*own, *client_routes()])
    app.on_shutdown.append(control.end_logs)
    return app


def _app(services: Services, middlewares: Sequence[Middleware], routes: Sequence[web.RouteDef]) -> web.Application:
    app = web.Application(middlewares=middlewares, client_max_size=services.config.snapshot.settings.server.max_body)
    app[SERVICES] = services
    app.add_routes([_expecting(route) for route in routes])
    app.on_response_prepare.append(add_common_headers)
    app.on_response_prepare.append(add_cors_headers)
    return app


def _expecting(route: web.RouteDef) -> web.RouteDef:
    return web.RouteDef(route.method, route.path, route.handler, route.kwargs | {"expect_handler": _expected})


async def _expected(request: web.Request) -> None:
    """Let a client that waits for that send its body. Any other expectation may be ignored (RFC 9110, 10.1.1), and is:
    aiohttp's own handler refuses it as plain text, and fails on one that is no UTF-8."""
    if request.version >= HttpVersion11 and request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0  # an error may still be the whole answer


def _by_prefix(shapes: Sequence[tuple[str, ErrorShape]]) -> Callable[[str], ErrorShape]:
    ordered = sorted(shapes, key=lambda pair: -len(pair[0]))

    def shape_of(path: str) -> ErrorShape:
        return next(shape for prefix, shape in ordered if path.startswith(prefix) or prefix == "/")

    return shape_of


def _tcp_client(request: web.BaseRequest) -> str:
    return request.remote or "-"


class Peer(NamedTuple):
    """The process at the other end of a Unix socket, as the kernel vouches for it."""

    pid: int
    uid: int
    gid: int


def peer_of(request: web.BaseRequest) -> Peer | None:
    transport = request.transport
    sock = None if transport is None else transport.get_extra_info("socket")
    if sock is None:
        return None
    try:
        return Peer(*struct.unpack("3i", sock.getsockopt(SOL_SOCKET, SO_PEERCRED, struct.calcsize("3i"))))
    except OSError:
        return None


def _unix_client(request: web.BaseRequest) -> str:
    peer = peer_of(request)
    return "control" if peer is None else f"control(pid={peer.pid} uid={peer.uid} gid={peer.gid})"
