"""Failures that end a command, each with its exit code: 1 failed, 2 usage, 3 daemon not reachable."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # lmd.protocol imports msgspec, which a usage error does not need
    from lmd.protocol import ProblemRow


class CommandError(Exception):
    """What happened, in ``message``; what to type next, in ``hint``. ``code`` is the daemon's, where it said one."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        code: str = "failed",
        problems: Sequence["ProblemRow"] = (),
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
        self.problems = tuple(problems)


class UsageError(CommandError):
    exit_code = 2

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint, code="usage")


class Unreachable(CommandError):
    exit_code = 3

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint, code="unreachable")
