"""Why a worker ended, told from its exit status, its last output and the kernel's OOM counter."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass

_TOLD_LINES = 4
"""How many of the last lines of output an error carries; the log has more."""


@dataclass(frozen=True, slots=True)
class Death:
    """``what`` is a clause ("was killed by SIGKILL"), ``why`` the likely cause, ``hint`` what to do about it."""

    what: str
    why: str = ""
    hint: str | None = None

    def sentence(self, subject: str) -> str:
        return f"{subject} {self.what}: {self.why}." if self.why else f"{subject} {self.what}."


def explain(returncode: int | None, lines: Sequence[str], oom_killed: bool) -> Death:
    """``returncode`` as subprocess gives it (negative: a signal), None while the process has not ended.

    ``oom_killed``: the kernel's count of OOM kills has risen during the worker's life.
    """
    told = [line for line in lines if line.strip()]
    if returncode is None:
        return Death("closed its connection without ending", _last(told))
    if returncode < 0:
        what = f"was killed by {_signal_name(-returncode)}"
        match -returncode:
            case signal.SIGKILL if oom_killed:
                return Death(
                    what,
                    "the machine or the service's memory limit ran out of memory",
                    "Load it with fewer kv_cells, "
                    "a smaller context_length or a smaller quantization, or unload other models first.",
                )
            case signal.SIGKILL:
                return Death(what, "somebody killed it, or the system ran out of memory")
            case signal.SIGABRT:
                return Death(
                    what, _line_with(told, ("GGML_ASSERT", "ggml_abort", "terminate called", "what():")) or _last(told)
                )
            case signal.SIGSEGV | signal.SIGBUS | signal.SIGFPE | signal.SIGILL:
                why = "a crash in llama.cpp"
                if -returncode == signal.SIGBUS:
                    why = "the model's file became shorter or unreadable while it was mapped"
                elif -returncode == signal.SIGILL:
                    why = "llama.cpp was built for another CPU"
                return Death(what, why)
        return Death(what)
    return Death(f"ended with exit status {returncode}", _last(told))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _line_with(lines: Sequence[str], marks: Sequence[str]) -> str:
    return next((line.strip() for line in reversed(lines) if any(mark in line for mark in marks)), "")


def _last(lines: Sequence[str]) -> str:
    return " | ".join(line.strip() for line in lines[-_TOLD_LINES:])
