import asyncio
import json
import re
from contextlib import AbstractAsyncContextManager

import pytest

from lmd.protocol import Failure, InstanceRow, ModelRow, PresetRow
from tests.lmctl.conftest import LMCTL, Run, environment
from tests.lmctl.fake_daemon import TINY, FakeDaemon
from tests.lmctl.terminal import Terminal, terminal

HELLO: list[dict[str, object] | str | bytes] = [{"role": "assistant"}, {"content": "Hel"}, {"content": "lo → 😀"}]


def chats(daemon: FakeDaemon) -> list[dict[str, object]]:
    return [body for route, body in daemon.requests if route == "POST /v1/chat/completions"]


async def test_the_answer_and_nothing_else_is_on_standard_output(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.pieces = [": loading\n\n", {"reasoning_content": "hm"}, *HELLO]
    ran = await lmctl("chat", "tiny-chat", "-p", "Hi", "--stats")
    assert (ran.code, ran.out) == (0, "Hello → 😀\n")
    assert ran.err.startswith("9 tokens in, 3 out")
    assert "ended by stop" in ran.err


async def test_options_are_in_the_request(daemon: FakeDaemon, lmctl: Run) -> None:
    await lmctl("chat", "m", "-p", "Hi", "-s", "Be brief.", "--ttl", "5m")
    await lmctl("chat", "m", "-p", "Hi", "--ttl", "never")
    first, second = chats(daemon)
    assert first["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert (first["model"], first["stream"], first["ttl"], second["ttl"]) == ("m", True, 300.0, "never")


@pytest.mark.parametrize(
    ("args", "stdin", "question"),
    [
        (("-p", "Sum up:"), "a text\nof lines\n", "Sum up:\n\na text\nof lines"),
        ((), "only this\n", "only this"),
        (("-p", "Hi"), "", "Hi"),
    ],
)
async def test_piped_text_is_part_of_the_question(
    daemon: FakeDaemon, lmctl: Run, args: tuple[str, ...], stdin: str, question: str
) -> None:
    ran = await lmctl("chat", "m", *args, stdin=stdin)
    assert (ran.code, chats(daemon)[0]["messages"]) == (0, [{"role": "user", "content": question}])


@pytest.mark.parametrize("args", [("chat", "m"), ("chat", "m", "--json"), ("chat", "m", "-p", " ")])
async def test_no_question_is_wrong_usage(daemon: FakeDaemon, lmctl: Run, args: tuple[str, ...]) -> None:
    ran = await lmctl(*args, stdin="")
    assert (ran.code, daemon.requests) == (2, [])


async def test_json_is_the_whole_answer(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.pieces = [{"reasoning_content": "h"}, {"reasoning_content": "m"}, *HELLO]
    told = json.loads((await lmctl("chat", "m", "-p", "Hi", "--json")).out)
    assert (told["content"], told["reasoning_content"], told["finish_reason"]) == ("Hello → 😀", "hm", "stop")
    assert told["usage"] == {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12}
    assert told["stats"]["time_to_first_token"] >= 0


async def test_without_a_name_the_model_in_memory_answers(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.instances = [TINY, InstanceRow(id="other", model="m", state="loading")]
    daemon.models = [ModelRow("a", "/a", "llm", "", "", 0, 0, 0), ModelRow("b", "/b", "llm", "", "", 0, 0, 0)]
    await lmctl("chat", "-p", "Hi")
    assert chats(daemon)[0]["model"] == "tiny-chat"


async def test_without_a_name_the_only_preset_stands_for_its_model(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.models = [ModelRow("a", "/a", "llm", "", "", 0, 0, 0)]
    daemon.presets = [PresetRow("fast", "/p", "a")]
    await lmctl("chat", "-p", "Hi")
    assert chats(daemon)[0]["model"] == "fast"


async def test_without_a_name_several_models_are_listed(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.models = [ModelRow("a", "/a", "llm", "", "", 0, 0, 0), ModelRow("b", "/b", "llm", "", "", 0, 0, 0)]
    ran = await lmctl("chat", "-p", "Hi")
    assert (ran.code, chats(daemon)) == (2, [])
    assert "Which model? There are a, b." in ran.err


async def test_an_error_event_ends_with_its_message_after_the_text_so_far(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.pieces = [*HELLO, 'data: {"error": {"message": "The worker died.", "code": "worker_died"}}\n\n']
    ran = await lmctl("chat", "m", "-p", "Hi")
    assert (ran.code, ran.out, ran.err) == (1, "Hello → 😀\n", "error: The worker died.\n")


async def test_an_error_before_the_stream_is_read_from_the_apis_shape(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.failure = (404, {"error": {"message": "No model 'm'.", "code": "model_not_found"}})
    ran = await lmctl("chat", "m", "-p", "Hi", "--json")
    assert (ran.code, json.loads(ran.err)["code"]) == (1, "model_not_found")


async def test_a_stream_that_breaks_off_is_an_error(lmctl: Run, socket: object) -> None:
    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = await reader.readuntil(b"\r\n\r\n")
        # All of it: the kernel drops what was sent to a client whose request was not read.
        await reader.readexactly(int(re.search(rb"Content-Length: (\d+)", headers)[1]))  # type: ignore[index]
        writer.write(
            b'HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndata: {"choices": [{"delta": {"content": "He"}}]}\n\n'
        )
        writer.close()

    async with await asyncio.start_unix_server(half, str(socket)):
        ran = await lmctl("chat", "m", "-p", "Hi")
    assert (ran.code, ran.out) == (1, "He\n")
    assert "broke off" in ran.err


async def test_a_refusal_of_the_control_socket_is_told_in_its_own_shape(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.failure = (503, Failure(code="draining", message="lmd is stopping."))
    ran = await lmctl("chat", "m", "-p", "Hi")
    assert (ran.code, ran.err) == (1, "error: lmd is stopping.\n")


def talking(daemon: FakeDaemon) -> AbstractAsyncContextManager[Terminal]:
    return terminal(LMCTL, "chat", "m", env=environment(daemon.socket))


async def ask(screen: Terminal, question: str) -> None:
    await screen.until("> ")
    screen.type(question + "\r")


async def test_a_conversation_remembers_and_ends_with_ctrl_d(daemon: FakeDaemon) -> None:
    daemon.pieces = HELLO
    async with talking(daemon) as screen:
        await ask(screen, "one")
        await screen.until("Hello → 😀")
        await ask(screen, "two")
        await screen.until("Hello → 😀")
        await ask(screen, "/clear")
        await ask(screen, "three")
        await screen.until("Hello → 😀")
        await screen.until("> ")
        screen.type("\x04")
        assert await screen.end() == 0
    sent = [[message["content"] for message in body["messages"]] for body in chats(daemon)]  # type: ignore[attr-defined]
    assert sent == [["one"], ["one", "Hello → 😀", "two"], ["three"]]


async def test_ctrl_c_stops_the_answer_and_not_the_program(daemon: FakeDaemon) -> None:
    daemon.pieces, daemon.hold = HELLO, asyncio.Event()
    async with talking(daemon) as screen:
        await ask(screen, "one")
        await screen.until("lo → 😀")
        screen.type("\x03")
        await screen.until("Stopped.")
        await daemon.gone.wait()
        daemon.hold.set()
        await ask(screen, "two")
        await screen.until("lo → 😀")
        await ask(screen, "/exit")
        assert await screen.end() == 0
    sent = [[message["content"] for message in body["messages"]] for body in chats(daemon)]  # type: ignore[attr-defined]
    assert sent == [["one"], ["one", "Hello → 😀", "two"]]


async def test_ctrl_c_at_the_prompt_empties_the_line_at_once_whenever_it_is_typed(daemon: FakeDaemon) -> None:
    daemon.pieces = HELLO
    async with talking(daemon) as screen:
        await ask(screen, "whole")
        await screen.until("lo → 😀")
        for typed in ("", "half a question") * 10:
            await screen.until("> ")
            screen.type(f"{typed}\x03")  # nothing is typed after it, so that nothing else can bring it about
            await screen.until("leaves")
        await ask(screen, "\x1b[A")  # what was given up is not in the history
        await screen.until("lo → 😀")
        await ask(screen, "one\\")
        await screen.until(". ")
        screen.type("half of two lines\x03")
        await screen.until("leaves")
        await ask(screen, "/exit")
        assert await screen.end() == 0
    assert [body["messages"][-1]["content"] for body in chats(daemon)] == ["whole", "whole"]  # type: ignore[index]


async def test_an_error_in_a_conversation_does_not_end_it(daemon: FakeDaemon) -> None:
    daemon.failure = (503, Failure(code="draining", message="lmd is stopping."))
    async with talking(daemon) as screen:
        await ask(screen, "one")
        await screen.until("lmd is stopping.")
        daemon.failure, daemon.pieces = None, HELLO
        await ask(screen, "two")
        await screen.until("lo → 😀")
        await ask(screen, "/exit")
        assert await screen.end() == 0
    assert chats(daemon)[1]["messages"] == [{"role": "user", "content": "two"}]


async def test_a_question_of_several_lines_is_one_question(daemon: FakeDaemon) -> None:
    daemon.pieces = HELLO
    async with talking(daemon) as screen:
        await ask(screen, "first\\")
        await screen.until(". ")
        screen.type("second\r")
        await screen.until("lo → 😀")
        await ask(screen, "/exit")
        await screen.end()
    assert chats(daemon)[0]["messages"] == [{"role": "user", "content": "first\nsecond"}]


async def test_reasoning_is_dim_on_a_terminal_and_the_answer_is_not(daemon: FakeDaemon) -> None:
    daemon.pieces = [{"reasoning_content": "let me see"}, {"content": "\x1b[2Jdone [bold]"}]
    async with terminal(LMCTL, "chat", "m", "-p", "Hi", env=environment(daemon.socket)) as screen:
        assert await screen.end() == 0
    assert "\x1b[2mlet me see\x1b[0m" in screen.raw
    assert "let me see\r\n\r\n[2Jdone [bold]\r\n" in screen.text
    assert "\x1b[2J" not in screen.raw


async def test_a_single_answer_stopped_with_ctrl_c_is_exit_code_130(daemon: FakeDaemon) -> None:
    daemon.pieces, daemon.hold = HELLO, asyncio.Event()
    async with terminal(LMCTL, "chat", "m", "-p", "Hi", env=environment(daemon.socket)) as screen:
        await screen.until("lo → 😀")
        screen.type("\x03")
        assert await screen.end() == 130
    await daemon.gone.wait()


CALLS: list[dict[str, object] | str | bytes] = [
    {"content": "Let me look."},
    {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "weather", "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"city": '}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '"Oslo"}'}}]},
    {"tool_calls": [{"index": 1, "id": "b", "function": {"name": "clock", "arguments": "{}"}}]},
]


async def test_tool_calls_are_shown_on_a_terminal_each_on_its_line(daemon: FakeDaemon) -> None:
    daemon.pieces = [{"reasoning_content": "hm"}, *CALLS]
    async with terminal(LMCTL, "chat", "m", "-p", "Hi", env=environment(daemon.socket)) as screen:
        assert await screen.end() == 0
    shown = 'hm\n\nLet me look.\n\ntool call: weather {"city": "Oslo"}\ntool call: clock {}\n'
    assert shown in screen.text.replace("\r\n", "\n")


async def test_tool_calls_stay_out_of_a_pipe_and_are_in_the_json(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.pieces = CALLS
    ran = await lmctl("chat", "m", "-p", "Hi")
    assert (ran.out, ran.err.splitlines()) == (
        "Let me look.\n",
        ['tool call: weather {"city": "Oslo"}', "tool call: clock {}"],
    )
    told = json.loads((await lmctl("chat", "m", "-p", "Hi", "--json")).out)
    assert told["tool_calls"] == [
        {"name": "weather", "arguments": '{"city": "Oslo"}'},
        {"name": "clock", "arguments": "{}"},
    ]
