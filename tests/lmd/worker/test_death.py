import signal

import pytest

from lmd.worker.death import explain


@pytest.mark.parametrize(
    ("returncode", "lines", "oom", "what", "why"),
    [
        (-signal.SIGKILL, [], True, "SIGKILL", "ran out of memory"),
        (-signal.SIGKILL, [], False, "SIGKILL", "somebody killed it"),
        (-signal.SIGABRT, ["load", "ggml.c:1: GGML_ASSERT(x) failed", "bye"], False, "SIGABRT", "GGML_ASSERT(x)"),
        (-signal.SIGABRT, ["bye"], False, "SIGABRT", "bye"),
        (-signal.SIGSEGV, [], False, "SIGSEGV", "crash"),
        (-signal.SIGBUS, [], False, "SIGBUS", "file"),
        (-signal.SIGILL, [], False, "SIGILL", "CPU"),
        (-signal.SIGTERM, [], False, "SIGTERM", ""),
        (-63, [], False, "signal|SIG", ""),
        (3, ["a", "unknown architecture 'x'"], False, "status 3", "a | unknown architecture 'x'"),
        (None, ["hm"], False, "without ending", "hm"),
    ],
)
def test_the_cause_is_told_from_the_exit_status(returncode, lines, oom, what, why):
    death = explain(returncode, lines, oom)
    assert any(part in death.what for part in what.split("|"))
    assert why in death.why
    assert death.sentence("The worker").startswith("The worker ")
    assert death.sentence("The worker").endswith(".")


def test_out_of_memory_says_what_to_change():
    hint = explain(-signal.SIGKILL, [], True).hint
    assert hint is not None
    assert "context_length" in hint
