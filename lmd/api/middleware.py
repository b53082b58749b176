"""What every request passes through: an id, a record, the Host check, CORS, and errors in the right shape."""

import asyncio
import ipaddress
import logging
import re
import time
import uuid
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from aiohttp.web_protocol import RequestPayloadError

from lmd import log
from lmd.api.activity import RequestRecord, recording
from lmd.api.services import services_of
from lmd.api.status import HttpError, error_code, error_headers, http_status, internal_error, of_http_exception
from lmd.errors import Forbidden, LmdError

logger = logging.getLogger(__name__)
access = logging.getLogger("lmd.access")

ErrorShape = Callable[[LmdError, int], bytes]
"""A dialect's way to write an error: (error, status) → JSON body."""

_ACCEPTABLE_ID = re.compile(r"[!-~]{1,128}")


def request_records(client_of: Callable[[web.BaseRequest], str]) -> Middleware:
    """Gives each request its id (``X-Request-Id``, taken over where the client sent one) and logs its one line."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        said = request.headers.get("X-Request-Id", "")
        identifier = said if _ACCEPTABLE_ID.fullmatch(said) else f"req_{uuid.uuid4().hex}"
        record = RequestRecord(identifier, request.method, request.path, client_of(request))
        request[RECORD] = record
        status = 499  # as nginx has it: the client left before there was a status
        with log.serving(identifier), recording(record):
            try:
                response = await handler(request)
                status = response.status
            finally:
                _log_line(record, record.answered or status)
        return response

    return middleware


RECORD: web.RequestKey[RequestRecord] = web.RequestKey("record", RequestRecord)


async def add_common_headers(request: web.Request, response: web.StreamResponse) -> None:
    """A ``on_response_prepare`` signal: headers that also streams and aiohttp's own answers carry."""
    record = request.get(RECORD)
    if record is not None:
        response.headers["X-Request-Id"] = record.id
        if record.preset is not None:
            response.headers["X-Lmd-Preset"] = record.preset
    response.headers.setdefault("Server", "lmd")


def _log_line(record: RequestRecord, status: int) -> None:
    seconds = time.monotonic() - record.started
    usage = record.usage
    ttft = None if record.first_token is None else round(record.first_token - record.started, 4)
    level = logging.INFO if status < 500 else logging.WARNING
    if not access.isEnabledFor(level):
        return
    access.log(
        level,
        "%s %s %s %d %.3fs",
        record.client,
        record.method,
        # A path is the client's: control characters must not forge a second line.
        ascii(record.path)[1:-1][:200],
        status,
        seconds,
        extra=log.fields(
            CLIENT=record.client,
            TOKEN=record.token,
            MODEL=record.model,
            PRESET=record.preset,
            INSTANCE=record.instance,
            STATUS=status,
            DURATION=round(seconds, 4),
            TTFT=ttft,
            PROMPT_TOKENS=None if usage is None else usage.prompt_tokens,
            COMPLETION_TOKENS=None if usage is None else usage.completion_tokens,
            ERROR=record.error,
        ),
    )


def error_response(error: LmdError, shape: ErrorShape) -> web.Response:
    status = http_status(error)
    return web.Response(
        body=shape(error, status), status=status, content_type="application/json", headers=error_headers(error)
    )


def errors_in_shape(shape_of: Callable[[str], ErrorShape]) -> Middleware:
    """Every failure as the dialect of its path writes it. ``shape_of`` is given the path."""

    # No variable of this frame may hold what was raised: its traceback holds the frame, with the request and its body.
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except LmdError as raised:
            return told(request, raised)
        except web.HTTPException as raised:
            if raised.status < 400:
                raise
            response = told(request, of_http_exception(raised, request.method, request.path))
            if "Allow" in raised.headers:
                response.headers["Allow"] = raised.headers["Allow"]
            return response
        except RequestPayloadError:
            said = "The request's body is not encoded as its headers say."
            hint = "Look at Content-Encoding and Transfer-Encoding."
            return told(request, HttpError(400, "unreadable_body", said, hint=hint))
        except ConnectionError:
            raise  # the client left
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            return told(request, internal_error())

    def told(request: web.Request, error: LmdError) -> web.Response:
        record = request.get(RECORD)
        if record is not None:
            record.error = error_code(error)
        response = error_response(error, shape_of(request.path))
        if http_status(error) in {408, 413, 503}:
            response.force_close()
        return response

    return middleware


# ── Host and Origin ───────────────────────────────────────────────────────────────────────────


def host_allowed(host: str, bound: Collection[str], allowed: Collection[str]) -> bool:
    """Whether a Host header may name this server.

    A page that rebinds its own domain's DNS to this machine still sends that domain as Host: only loopback names,
    the ``bound`` addresses (any address where a wildcard is bound) and ``allowed`` names pass; "*" allows all.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    name = name.rstrip(".").lower()
    if "*" in allowed or name in allowed or name in bound or name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or any(wildcard in bound for wildcard in ("0.0.0.0", "::"))


def host_check(allowed_hosts: Callable[[], Collection[str]], bound: Callable[[], Collection[str]]) -> Middleware:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        host = request.headers.get("Host")
        if host is not None and not host_allowed(host, bound(), {name.lower() for name in allowed_hosts()}):
            raise Forbidden(
                f"This server does not answer for the host {host!r}.",
                hint="Add it to [server] allowed_hosts if it is meant to.",
            )
        return await handler(request)

    return middleware


def origin_check(origins: Callable[[], Collection[str]]) -> Middleware:
    """Refuses what pages of other origins send: a browser keeps them from reading the answer, not from asking."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        if origin is not None and not _origin_allowed(origin, request.headers.get("Host", ""), origins()):
            raise Forbidden(
                f"Pages of the origin {origin[:200]!r} may not use this server.",
                hint="Add it to [server] cors_origins if they are meant to.",
            )
        return await handler(request)

    return middleware


def _origin_allowed(origin: str, host: str, listed: Collection[str]) -> bool:
    _, separator, authority = origin.partition("://")
    own = bool(separator) and authority.lower() == host.lower()
    return own or "*" in listed or origin in listed


def cors(origins: Callable[[], Collection[str]]) -> Middleware:
    """CORS headers for listed origins ("*": all), and answers to their preflights. Others get none."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        origin = request.headers.get("Origin")
        listed = origins()
        allowed = origin is not None and ("*" in listed or origin in listed)
        preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if allowed:
            request[CORS_ORIGIN] = origin or ""
        if not (allowed and preflight):
            return await handler(request)
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, DELETE, OPTIONS",
                "Access-Control-Allow-Headers": request.headers.get("Access-Control-Request-Headers", "*"),
                "Access-Control-Max-Age": "600",
            },
        )

    return middleware


CORS_ORIGIN: web.RequestKey[str] = web.RequestKey("cors_origin", str)


async def add_cors_headers(request: web.Request, response: web.StreamResponse) -> None:
    """A ``on_response_prepare`` signal: on errors and streams as well."""
    origin = request.get(CORS_ORIGIN)
    if origin is not None:
        response.headers["Access-Control-Allow-Origin"] = origin
        response.headers["Access-Control-Expose-Headers"] = "X-Request-Id, X-Lmd-Preset, Retry-After"
        response.headers.add("Vary", "Origin")


# ── bodies ────────────────────────────────────────────────────────────────────────────────────


async def json_body(request: web.Request) -> bytes:
    """The body of a JSON request, unparsed, once. HttpError 415 where it says it is something else."""
    if request.content_type != "application/json":
        raise HttpError(
            415,
            "unsupported_media_type",
            f"The body's content type is {request.content_type!r}.",
            hint="Send JSON with 'Content-Type: application/json'.",
        )
    seconds = services_of(request).config.snapshot.settings.limits.receive_timeout
    try:
        async with asyncio.timeout(seconds if 0 < seconds < 1e9 else None):
            return await request.read()
    except TimeoutError:
        raise HttpError(
            408,
            "request_timeout",
            f"The request's body did not come within {seconds:g} seconds.",
            hint="[limits] receive_timeout says how long it may take.",
        ) from None
    finally:
        # aiohttp keeps it with the request, and that as long as the answer takes, or the connection waits for the next.
        request._read_bytes = None
