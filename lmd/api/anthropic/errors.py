"""Errors as Anthropic's clients read them: ``{"type": "error", "error": {"type", "message"}, "request_id"}``."""

import msgspec

from lmd import log
from lmd.errors import ContextLengthExceeded, LmdError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_object(error: LmdError, status: int) -> dict[str, object]:
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _message(error)}, "request_id": log.request_id()}


def _message(error: LmdError) -> str:
    if isinstance(error, ContextLengthExceeded):
        # Clients compact a conversation when they read these words.
        return f"prompt is too long: {error.n_prompt} tokens > {error.n_ctx} maximum"
    return f"{error.param}: {error}" if error.param and error.param not in str(error) else str(error)


def error_body(error: LmdError, status: int) -> bytes:
    return msgspec.json.encode(error_object(error, status))


def error_event(error: LmdError, status: int) -> bytes:
    """An error that comes after the stream has begun; the official clients raise it."""
    return b"event: error\ndata: " + error_body(error, status) + b"\n\n"
