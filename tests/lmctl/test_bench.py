"""The figures of ``lmctl bench``, and the command against the real daemon."""

import json

import pytest

from lmctl.bench import figures
from lmctl.completion import Usage
from lmctl.conversation import Answer
from lmctl.errors import CommandError
from tests.conftest import Daemon, StartDaemon
from tests.lmctl.conftest import LMCTL, Run, environment
from tests.lmctl.terminal import terminal


@pytest.fixture(scope="module")
def lmd(start_daemon: StartDaemon) -> Daemon:
    return start_daemon()


def answer(first: float, last: float, completion: int) -> Answer:
    usage = Usage(prompt_tokens=100, completion_tokens=completion, total_tokens=100 + completion)
    return Answer(text="x", usage=usage, first=first, last=last)


def test_figures_of_one_stream() -> None:
    run = figures([answer(0.5, 2.5, 21)], 2.6)
    assert (run.prompt_tps, run.decode_tps, run.stream_tps, run.ttft_mean) == (200.0, 10.0, 10.0, 0.5)


def test_figures_of_streams_that_overlap() -> None:
    run = figures([answer(0.5, 2.5, 21), answer(1.0, 2.0, 11)], 2.6)
    assert (run.streams, run.prompt_tokens, run.completion_tokens) == (2, 200, 32)
    assert run.prompt_tps == 200.0  # all 200 were read after 1.0 s
    assert run.decode_tps == 15.0  # 30 after the first of each, from 0.5 to 2.5
    assert (run.stream_tps, run.ttft_mean, run.ttft_max, run.seconds) == (10.0, 0.75, 1.0, 2.6)


def test_what_arrived_all_at_once_has_no_rate() -> None:
    run = figures([answer(0.5, 0.5, 8)], 0.6)
    assert (run.decode_tps, run.stream_tps, run.prompt_tps) == (None, None, 200.0)
    run = figures([answer(0.5, 0.5, 8), answer(0.5, 2.5, 21)], 2.6)
    assert (run.decode_tps, run.stream_tps) == (13.5, 10.0)  # 27 tokens in 2 s, and the one stream that tells


def test_an_answer_without_text_is_no_figure() -> None:
    with pytest.raises(CommandError, match="no text"):
        figures([answer(0.5, 2.5, 21), Answer()], 1.0)


async def test_every_number_of_streams_is_measured_with_exact_counts(lmd: Daemon, lmctl: Run) -> None:
    args = ("bench", "tiny-chat", "--streams", "1,3", "-p", "32", "-n", "8")
    ran = await lmctl(*args, "--json", env=environment(lmd.socket))
    assert ran.code == 0, ran.err
    told = json.loads(ran.out)
    assert [(run["streams"], run["prompt_tokens"], run["completion_tokens"]) for run in told["runs"]] == [
        (1, 32, 8),
        (3, 96, 24),
    ]
    assert all(run[name] > 0 for run in told["runs"] for name in ("prompt_tps", "ttft_mean", "seconds"))
    assert all(run["stream_tps"] is None or run["stream_tps"] > 0 for run in told["runs"])
    ran = await lmctl(*args, env=environment(lmd.socket))
    assert [line.split()[0] for line in ran.out.splitlines()] == ["STREAMS", "1", "3"]


async def test_more_streams_than_sequences_is_told(lmd: Daemon, lmctl: Run) -> None:
    env = environment(lmd.socket)
    await lmctl("unload", "--all", env=env)
    await lmctl("load", "tiny-chat", "--parallel", "1", env=env)
    ran = await lmctl("bench", "tiny-chat", "--streams", "2", "-p", "8", "-n", "4", env=env)
    assert "computes 1 sequences at once" in ran.err
    await lmctl("unload", "--all", env=env)


async def test_the_daemons_refusal_and_wrong_words_are_told(lmd: Daemon, lmctl: Run) -> None:
    env = environment(lmd.socket)
    ran = await lmctl("bench", "nothing", env=env)
    assert (ran.code, "nothing" in ran.err) == (1, True)
    ran = await lmctl("bench", "tiny-chat", "--streams", "1", "-p", "100000", "-n", "4", env=env)
    assert (ran.code, "context" in ran.err) == (1, True)
    for wrong in ("0", "x", "", "1,,2", "1000"):
        assert (await lmctl("bench", "tiny-chat", "--streams", wrong, env=env)).code == 2


async def test_ctrl_c_ends_a_measurement_and_what_it_computes(lmd: Daemon, lmctl: Run) -> None:
    env = environment(lmd.socket)
    async with terminal(LMCTL, "log", "--stats", "--filter", "input", env=env, columns=200) as watched:
        await watched.until("Ctrl-C ends.")
        args = ("--streams", "1", "-p", "8", "-n", "8000")
        async with terminal(LMCTL, "bench", "tiny-chat", *args, env=env) as screen:
            await watched.until("input #1")  # the warm-up
            await watched.until("input #2")
            screen.type("\x03")
            assert await screen.end() == 130
        await watched.until("#2: ")
        await watched.until("ended by cancelled")
