"""Which HTTP status each error becomes, for every dialect alike."""

import math

from aiohttp import web

from lmd import errors, log

_STATUS: tuple[tuple[type[errors.LmdError], int], ...] = (
    # Subclasses stand before their bases: the first that fits is taken.
    (errors.InvalidRequest, 400),
    (errors.AmbiguousModel, 400),
    (errors.Unauthorized, 401),
    (errors.Forbidden, 403),
    (errors.NotFound, 404),
    (errors.Conflict, 409),
    (errors.QueueTimeout, 503),
    (errors.Draining, 503),
    (errors.Overloaded, 429),
    (errors.InsufficientMemory, 503),
    (errors.Unloaded, 503),
    (errors.LoadFailed, 500),
    (errors.WorkerDied, 500),
    (errors.ModelFileError, 500),
    (errors.ConfigError, 422),
    (errors.Gated, 403),
    (errors.HubError, 502),
    (errors.DiskFull, 507),
)


class HttpError(errors.LmdError):
    """A failure that only HTTP knows: wrong method, wrong media type, too large a body."""

    def __init__(self, status: int, code: str, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.http_code = code


def http_status(error: errors.LmdError) -> int:
    if isinstance(error, HttpError):
        return error.status
    for kind, status in _STATUS:
        if isinstance(error, kind):
            return status
    return 500


def error_code(error: errors.LmdError) -> str:
    return error.http_code if isinstance(error, HttpError) else error.code


def error_headers(error: errors.LmdError) -> dict[str, str]:
    if isinstance(error, errors.Overloaded):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
    if isinstance(error, errors.Unauthorized):
        return {"WWW-Authenticate": "Bearer"}
    return {}


def of_http_exception(raised: web.HTTPException, method: str, path: str) -> errors.LmdError:
    """What aiohttp raised while routing or reading a request, as one of ours."""
    if isinstance(raised, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(raised.allowed_methods))
        return HttpError(405, "method_not_allowed", f"{path} does not take {method}.", hint=f"It takes: {allowed}.")
    if isinstance(raised, web.HTTPRequestEntityTooLarge):
        return HttpError(
            413,
            "request_too_large",
            "The request's body is larger than this server takes.",
            hint="Raise [server] max_body, or send less.",
        )
    if raised.status == 404:
        return HttpError(404, "unknown_route", f"There is no {path} here.", hint="docs/api.md lists the routes.")
    return HttpError(raised.status, "http_error", raised.reason)


def internal_error() -> errors.LmdError:
    """What a client is told of a failure that is lmd's own; the log has the rest."""
    return errors.LmdError(
        "Something went wrong inside lmd.", hint=f"Its log says more, under request id {log.request_id()}."
    )
