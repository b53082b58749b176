import asyncio
import json
import re

import pytest

from lmd.protocol import Answered, AnswerEnded, ControlEvent, Failure, LogLine, Prompted
from tests.lmctl.conftest import LMCTL, Run, environment
from tests.lmctl.fake_daemon import FakeDaemon
from tests.lmctl.terminal import terminal


def prompted(n: int, text: str) -> Prompted:
    return Prompted(n, 0.0, text, f"model-{n}", f"model-{n}", f"req_{n}")


def ended(n: int, reason: str = "eog", error: str | None = None) -> AnswerEnded:
    return AnswerEnded(n, 1.0, reason, error=error, prompt_tokens=7, completion_tokens=3, tokens_per_second=12.34)


ONE: list[ControlEvent] = [prompted(1, "<user>Hi\n"), Answered(1, "Hel"), Answered(1, "lo"), ended(1)]


def heads(out: str) -> list[str]:
    """The output with each title cut down to what it is about."""
    return re.sub(r"── [\d:]+ (\w+ #\d) .*", r"[\1]", out).splitlines()


async def test_a_prompt_and_its_answer_are_shown_whole_and_a_closed_log_is_an_error(
    daemon: FakeDaemon, lmctl: Run
) -> None:
    daemon.log_events = ONE
    ran = await lmctl("log", "--stats")
    assert heads(ran.out) == [
        "[input #1]",
        "<user>Hi",
        "[output #1]",
        "Hello",
        "#1: 7 tokens in (0 cached) in 0.00 s, 3 out at 12.3 tokens/s, queued 0.00 s, ended by eog",
    ]
    assert "model-1 req_1" in ran.out
    assert (ran.code, "closed the log" in ran.err) == (1, True)
    assert daemon.requests == [("GET /log?source=model", None)]


@pytest.mark.parametrize(
    ("only", "shown"), [("input", ["[input #1]", "<user>Hi"]), ("output", ["[output #1]", "Hello"])]
)
async def test_a_filter_shows_only_what_it_names(daemon: FakeDaemon, lmctl: Run, only: str, shown: list[str]) -> None:
    daemon.log_events = ONE
    assert heads((await lmctl("log", "--filter", only)).out) == shown
    told = [json.loads(line) for line in (await lmctl("log", "--filter", only, "--json")).out.splitlines()]
    assert [line["type"] for line in told] == [only]


async def test_answers_that_stream_at_once_are_not_mixed(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.log_events = [
        prompted(1, "a"),
        prompted(2, "b"),
        Answered(2, "two "),
        Answered(1, "one "),
        Answered(2, "two"),
        Answered(1, "one"),
        ended(1),
        ended(2),
    ]
    out = heads((await lmctl("log", "--filter", "output")).out)
    assert out == ["[output #2]", "two two", "[output #1]", "one one"]


async def test_a_prompt_between_the_pieces_of_an_answer_does_not_lose_the_rest(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.log_events = [prompted(1, "a"), Answered(1, "on"), prompted(2, "b"), Answered(1, "e"), ended(1), ended(2)]
    assert heads((await lmctl("log")).out) == [
        "[input #1]", "a", "[output #1]", "on", "[input #2]", "b", "[output #1]", "e", "[output #2]",
    ]  # fmt: skip


async def test_json_is_a_line_for_each_prompt_and_each_whole_answer(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.log_events = [*ONE, Answered(9, "began before the watch"), ended(9)]
    asked, answered = (json.loads(line) for line in (await lmctl("log", "--json")).out.splitlines())
    assert (asked["type"], asked["text"], asked["model"], asked["request"]) == (
        "input",
        "<user>Hi\n",
        "model-1",
        "req_1",
    )
    assert (answered["type"], answered["text"], answered["reason"]) == ("output", "Hello", "eog")
    assert (answered["stats"]["completion_tokens"], answered["sequence"]) == (3, 1)


async def test_what_failed_says_why(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.log_events = [prompted(1, "a"), Answered(1, "x"), ended(1, "error", "The worker was killed.")]
    assert "x\nfailed: The worker was killed.\n" in (await lmctl("log")).out


async def test_a_log_that_is_read_too_slowly_ends_with_the_reason(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.log_events = [Failure("overloaded", "Read too slowly.", "Start again.")]
    ran = await lmctl("log")
    assert (ran.code, "Read too slowly." in ran.err) == (1, True)


async def test_the_servers_log_has_level_logger_and_fields(daemon: FakeDaemon, lmctl: Run) -> None:
    line = LogLine(0.0, "warning", "pool", "tiny is gone", {"instance": "tiny", "why": "two words"})
    daemon.log_events = [line]
    ran = await lmctl("log", "--source", "server")
    assert re.fullmatch(r'[\d:]{8} WARNING pool: tiny is gone instance=tiny why="two words"\n', ran.out)
    told = json.loads((await lmctl("log", "--source", "server", "--json")).out)
    assert (told["type"], told["fields"]["instance"]) == ("log", "tiny")


@pytest.mark.parametrize(
    "args",
    [("--source", "x"), ("--filter", "inputs"), ("--filter", ""), ("--source", "server", "--stats")],
)
async def test_wrong_words_are_wrong_usage(daemon: FakeDaemon, lmctl: Run, args: tuple[str, ...]) -> None:
    ran = await lmctl("log", *args)
    assert (ran.code, daemon.requests) == (2, [])


async def test_on_a_terminal_nothing_that_a_model_says_steers_it_and_ctrl_c_ends(daemon: FakeDaemon) -> None:
    daemon.hold = asyncio.Event()
    daemon.log_events = [prompted(1, "\x1b[2Jhi"), Answered(1, "\x1b]0;title\x07yes"), ended(1)]
    async with terminal(LMCTL, "log", env=environment(daemon.socket)) as screen:
        await screen.until("[2Jhi")
        await screen.until("]0;titleyes")
        screen.type("\x03")
        assert await screen.end() == 0
    assert "\x1b[2J" not in screen.raw and "\x1b]0" not in screen.raw
    await daemon.gone.wait()
