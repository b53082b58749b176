"""Every failure that lmd reports to a person or a client.

    LmdError
    ├── InvalidRequest            the request cannot be served as written (names the field in ``param``)
    │   ├── ContextLengthExceeded prompt and answer do not fit the context
    │   ├── TemplateError         the model's chat template refused the conversation
    │   └── Unsupported           a feature this build or this model does not have
    ├── Unauthorized              no token, or a wrong one
    ├── Forbidden                 the token, address or origin may not do this
    ├── NotFound                  a named thing does not exist
    │   ├── ModelNotFound         no model, preset or alias of that name
    │   ├── InstanceNotFound      no loaded instance of that id
    │   └── DownloadNotFound      no download of that id
    ├── AmbiguousModel            a short form that fits several models (lists them)
    ├── Conflict                  the thing exists, but not in a state that allows this
    ├── Overloaded                try again later (``retry_after`` seconds)
    │   ├── QueueTimeout          waited ``queue_timeout`` for memory or a sequence
    │   └── Draining              the daemon is stopping
    ├── InsufficientMemory        can never fit, whatever is unloaded
    ├── LoadFailed                the worker could not load the model
    ├── WorkerDied                the worker ended in the middle of the work
    ├── Unloaded                  the instance was unloaded by force under the request
    ├── ModelFileError            a file is not the model that it claims to be
    ├── HubError                  the hub refuses, cannot be reached, or sends what is not what it said
    │   └── Gated                 the hub wants an account that has been granted access
    ├── DiskFull                  no room for what was to be written
    └── ConfigError               settings or presets that cannot be used (``problems``)

A message says what happened and why; ``hint`` is the next thing to type or change.
``code`` is stable and machine-readable. Only ``lmd.api`` knows which HTTP status each becomes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class LmdError(Exception):
    """Base of all errors that carry a message meant for a person.

    ``param`` names the offending request field, dotted (``messages.0.role``), where there is one.
    """

    code: ClassVar[str] = "internal_error"

    def __init__(self, message: str, *, hint: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class InvalidRequest(LmdError):
    code = "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """The prompt needs ``n_prompt`` tokens where at most ``n_ctx`` fit."""

    code = "context_length_exceeded"

    def __init__(self, n_prompt: int, n_ctx: int) -> None:
        # Clients compact a conversation when they read "maximum context length is N tokens".
        super().__init__(
            f"This model's maximum context length is {n_ctx} tokens. However, your prompt has {n_prompt} tokens.",
            hint="Shorten the messages, or load the model with a larger context_length.",
            param="messages",
        )
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx


class TemplateError(InvalidRequest):
    code = "template_error"


class Unsupported(InvalidRequest):
    code = "not_implemented"


class Unauthorized(LmdError):
    code = "invalid_api_key"


class Forbidden(LmdError):
    code = "forbidden"


class NotFound(LmdError):
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class UnusableModel(ModelNotFound):
    """Its file is there, and cannot be served."""


class InstanceNotFound(NotFound):
    code = "instance_not_found"


class DownloadNotFound(NotFound):
    code = "download_not_found"


class AmbiguousModel(LmdError):
    code = "ambiguous_model"

    def __init__(self, name: str, candidates: Sequence[str]) -> None:
        super().__init__(
            f"'{name}' could mean any of: {', '.join(candidates)}.", hint="Use one of these names.", param="model"
        )
        self.candidates = tuple(candidates)


class Conflict(LmdError):
    code = "conflict"


class Overloaded(LmdError):
    code = "overloaded"

    def __init__(self, message: str, *, hint: str | None = None, retry_after: float = 1.0) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class QueueTimeout(Overloaded):
    code = "queue_timeout"


class Draining(Overloaded):
    code = "draining"


class InsufficientMemory(LmdError):
    code = "insufficient_memory"


class LoadFailed(LmdError):
    code = "load_failed"


class WorkerDied(LmdError):
    code = "worker_died"


class Unloaded(LmdError):
    code = "model_unloaded"


class ModelFileError(LmdError):
    code = "bad_model_file"


class HubError(LmdError):
    code = "hub_error"


class Gated(HubError):
    code = "gated_model"


class DiskFull(LmdError):
    code = "disk_full"


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in one file. ``line`` and ``column`` count from 1; 0 where unknown."""

    file: str
    message: str
    key: str = ""
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}"
            if self.column:
                place += f":{self.column}"
        return f"{place}: {self.key}: {self.message}" if self.key else f"{place}: {self.message}"


class ConfigError(LmdError):
    code = "config_error"

    def __init__(self, problems: Sequence[Problem], *, hint: str | None = None) -> None:
        super().__init__("; ".join(str(problem) for problem in problems), hint=hint)
        self.problems = tuple(problems)


def again(error: LmdError) -> LmdError:
    """The same error for one more waiter: an exception that several tasks raise collects all their tracebacks."""
    copied = type(error)(error.message, hint=error.hint)
    copied.param = error.param
    return copied


#: Errors by code: how one that crossed a process boundary becomes itself again.
BY_CODE: dict[str, type[LmdError]] = {
    cls.code: cls
    for cls in (
        InvalidRequest,
        TemplateError,
        Unsupported,
        Unauthorized,
        Forbidden,
        NotFound,
        ModelNotFound,
        InstanceNotFound,
        DownloadNotFound,
        Conflict,
        InsufficientMemory,
        LoadFailed,
        WorkerDied,
        Unloaded,
        ModelFileError,
        HubError,
        Gated,
        DiskFull,
    )
}
