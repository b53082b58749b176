"""What every command shares: where the socket is, JSON, exit codes, errors."""

import asyncio
import importlib.metadata
import json
import os
import socket as sockets
import subprocess
import sys
from pathlib import Path

import pytest

from lmd.protocol import Failure, ProblemRow
from tests.lmctl.conftest import LMCTL, Run, environment
from tests.lmctl.fake_daemon import TINY, FakeDaemon


@pytest.mark.parametrize(
    "args",
    [
        ("--socket", "SOCKET", "--json", "ps"),
        ("ps", "--socket", "SOCKET", "--json"),
        ("--json", "ps", "--socket=SOCKET"),
    ],
)
async def test_socket_and_json_stand_before_or_after_the_command(
    daemon: FakeDaemon, lmctl: Run, args: tuple[str, ...]
) -> None:
    daemon.instances = [TINY]
    ran = await lmctl(*(arg.replace("SOCKET", str(daemon.socket)) for arg in args), env=environment(None))
    assert (ran.code, [row["id"] for row in json.loads(ran.out)]) == (0, ["tiny-chat"])


@pytest.mark.parametrize("args", [("--json", "preset", "ls"), ("preset", "--json", "ls"), ("preset", "ls", "--json")])
async def test_a_group_takes_the_common_options_at_each_of_its_three_places(
    daemon: FakeDaemon, lmctl: Run, args: tuple[str, ...]
) -> None:
    assert json.loads((await lmctl(*args)).out) == []


async def test_the_option_wins_over_the_environment(daemon: FakeDaemon, lmctl: Run, tmp_path: Path) -> None:
    ran = await lmctl("ps", "--socket", str(daemon.socket), env=environment(tmp_path / "other.sock"))
    assert ran.code == 0


async def test_without_a_word_the_users_own_daemon_is_found(lmctl: Run, tmp_path: Path) -> None:
    (tmp_path / "lmd").mkdir()
    async with FakeDaemon(tmp_path / "lmd" / "lmd.sock").running() as daemon:
        ran = await lmctl("status", "--json", env=environment(None, XDG_RUNTIME_DIR=str(tmp_path)))
    # Root's default is /run/lmd; without a socket there the next place is tried.
    assert (ran.code, json.loads(ran.out)["socket"]) == (0, str(daemon.socket))


async def test_no_daemon_is_exit_code_3_and_says_how_to_start_one(lmctl: Run, socket: Path) -> None:
    ran = await lmctl("ps")
    assert (ran.code, ran.out) == (3, "")
    assert str(socket) in ran.err
    assert "systemctl start lmd" in ran.err


async def test_a_dead_daemons_socket_is_exit_code_3(lmctl: Run, socket: Path) -> None:
    with sockets.socket(sockets.AF_UNIX) as dead:
        dead.bind(str(socket))
    ran = await lmctl("status")
    assert ran.code == 3
    assert "nothing listens" in ran.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone without the right")
async def test_a_forbidden_socket_is_exit_code_3_and_names_the_group(daemon: FakeDaemon) -> None:
    daemon.socket.chmod(0o600)
    # A first run as root imports everything: the venv may lie where others cannot read.
    code = (
        "import os, sys, contextlib; from lmctl.cli import main\n"
        "sys.argv = ['lmctl', 'ps', '--socket', '/nowhere']\n"
        "with contextlib.suppress(SystemExit): main()\n"
        "os.setuid(65534); sys.argv = ['lmctl', 'ps']; main()"
    )
    for folder in (daemon.socket.parent, daemon.socket.parent.parent, daemon.socket.parent.parent.parent):
        folder.chmod(0o755)
    ran = subprocess.run([sys.executable, "-c", code], env=environment(daemon.socket), capture_output=True, text=True)
    assert (ran.returncode, "usermod -aG" in ran.stderr) == (3, True), ran.stderr


@pytest.mark.parametrize(
    "args",
    [
        (),
        ("nothing",),
        ("load",),
        ("load", "tiny-chat", "--ttl", "soon"),
        ("load", "tiny-chat", "--ttl", "-5"),
        ("load", "tiny-chat", "--gpu", "some"),
        ("load", "tiny-chat", "--parallel", "0"),
        ("load", "tiny-chat", "--set", "kv_cache_type"),
        ("unload",),
        ("unload", "tiny-chat", "--all"),
        ("ps", "--no-such-option"),
        ("preset",),
    ],
)
async def test_wrong_usage_is_exit_code_2_and_asks_nothing(
    daemon: FakeDaemon, lmctl: Run, args: tuple[str, ...]
) -> None:
    ran = await lmctl(*args)
    assert ran.code == 2
    assert ran.out + ran.err
    assert daemon.requests == []


async def test_a_mistyped_command_is_told_the_nearest(lmctl: Run) -> None:
    assert "Did you mean 'unload'" in (await lmctl("unlod")).err


async def test_a_refusal_is_exit_code_1_with_message_hint_and_places(daemon: FakeDaemon, lmctl: Run) -> None:
    problem = ProblemRow(file="a.toml", line=3, column=7, key="load.parallel", message="expected a number")
    daemon.failure = (
        404,
        Failure(code="model_not_found", message="No model 'x'.", hint="Try 'lmctl ls'.", problems=[problem]),
    )
    ran = await lmctl("load", "x")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines() == [
        "error: No model 'x'.",
        "a.toml:3:7: load.parallel: expected a number",
        "Try 'lmctl ls'.",
    ]


async def test_with_json_a_refusal_is_json_on_standard_error(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.failure = (409, Failure(code="conflict", message="In use."))
    ran = await lmctl("unload", "tiny-chat", "--json")
    assert (ran.code, ran.out) == (1, "")
    told = json.loads(ran.err)
    assert (told["code"], told["message"], told["hint"]) == ("conflict", "In use.", None)


async def test_an_answer_of_another_version_is_told_and_not_a_traceback(daemon: FakeDaemon, lmctl: Run) -> None:
    daemon.instances = [{"identity": 1}]  # type: ignore[list-item]
    ran = await lmctl("ps")
    assert ran.code == 1
    assert "does not understand" in ran.err
    assert "Traceback" not in ran.err


async def test_a_daemon_that_hangs_up_is_told_and_not_a_traceback(lmctl: Run, socket: Path) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n[")
        writer.close()

    server = await asyncio.start_unix_server(hang_up, socket)
    async with server:
        ran = await lmctl("ps")
    assert (ran.code, "Traceback" in ran.err) == (1, False)
    assert "closed the connection" in ran.err


async def test_a_reader_that_has_enough_is_no_error(daemon: FakeDaemon) -> None:
    daemon.instances = [TINY] * 5000
    process = await asyncio.create_subprocess_exec(
        "bash", "-o", "pipefail", "-c", f"{LMCTL} ps | head -n 1", env=environment(daemon.socket),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert (process.returncode, len(out.splitlines()), err) == (0, 1, b"")


def test_help_imports_neither_network_nor_rendering() -> None:
    """The reason why help is instant: it stays true on a machine of any speed."""
    code = (
        "import sys; sys.argv = ['lmctl', '--help']; from lmctl.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    )
    heavy = ("rich", "msgspec", "pydantic", "asyncio", "aiohttp", "http.client", "lmd")
    code += f"print('LOADED', *(name for name in {heavy} if name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Steer lmd" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "LOADED"


def test_version_is_the_packages_own() -> None:
    ran = subprocess.run([LMCTL, "--version"], capture_output=True, text=True)
    assert ran.stdout == f"lmctl {importlib.metadata.version('lmd')}\n"
