"""Errors as v1 writes them: ``{"error": {"type", "message", "code"?, "param"?}}``."""

import msgspec

from lmd import errors
from lmd.api.lmstudio.shapes import Error, ErrorBody
from lmd.api.status import error_code


def error_object(error: errors.LmdError, status: int) -> Error:
    body: ErrorBody = {"type": "unknown", "message": str(error), "code": error_code(error)}
    match error:
        case errors.Unsupported():
            body["type"] = "not_implemented"
        case errors.ModelNotFound() | errors.InstanceNotFound() | errors.AmbiguousModel():
            body["type"] = "model_not_found"
        case errors.DownloadNotFound():
            body["type"] = "job_not_found"
        case errors.HubError():
            body["type"] = "unknown"
        case _:
            body["type"] = "invalid_request" if status < 500 else "internal_error"
    if error.param is not None:
        body["param"] = error.param
    return {"error": body}


def error_body(error: errors.LmdError, status: int) -> bytes:
    return msgspec.json.encode(error_object(error, status))
