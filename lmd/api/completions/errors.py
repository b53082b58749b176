"""Errors as OpenAI's clients read them: ``{"error": {"message", "type", "param", "code"}}``."""

import msgspec

from lmd.api.status import error_code
from lmd.errors import LmdError

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}

#: Our codes that OpenAI writes otherwise. "invalid_request" is its error *type*; its code is null there.
_CODES = {"invalid_request": None}


def error_object(error: LmdError, status: int) -> dict[str, object]:
    code = error_code(error)
    return {
        "error": {
            "message": str(error),
            "type": _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error"),
            "param": error.param,
            "code": _CODES.get(code, code),
        }
    }


def error_body(error: LmdError, status: int) -> bytes:
    return msgspec.json.encode(error_object(error, status))


def error_event(error: LmdError, status: int) -> bytes:
    """An error that comes after the stream has begun; the official clients raise it."""
    return b"data: " + error_body(error, status) + b"\n\n"
