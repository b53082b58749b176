"""Completion in the shells themselves, with names from a control socket."""

import asyncio
import shutil
from pathlib import Path

import pytest

from lmctl.tree import commands
from lmd.protocol import InstanceRow, ModelRow, PresetRow
from tests.lmctl.conftest import LMCTL, Run, environment
from tests.lmctl.fake_daemon import FakeDaemon

COMPLETIONS = Path(__file__).parents[2] / "packaging" / "completions"

# Each completes the line in $LINE as the shell itself would, and prints what it offers, one a line.
DRIVERS = {
    "bash": """
        source "$SCRIPT"
        COMP_LINE=$LINE; COMP_POINT=${#LINE}
        read -ra COMP_WORDS <<< "$LINE"; [[ $LINE == *' ' ]] && COMP_WORDS+=('')
        COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
        compopt() { :; }
        _lmctl; printf '%s\\n' "${COMPREPLY[@]}"
    """,
    "zsh": """
        compdef() { :; }
        compadd() { shift; print -rl -- ${(M)@:#${words[CURRENT]}*}; }
        _describe() { local -a all; all=(${(P)2}); all=(${all%%:*}); print -rl -- ${(M)all:#${words[CURRENT]}*}; }
        _files() { print -rl -- ${words[CURRENT]}*(N); }
        source "$SCRIPT"
        words=(${(z)LINE}); [[ $LINE == *' ' ]] && words+=('')
        CURRENT=$#words; _lmctl
    """,
    "fish": "source $SCRIPT; complete -C $LINE | string replace -r '\\t.*' ''",
}


async def offered(shell: str, line: str, daemon: FakeDaemon, cwd: Path | None = None) -> set[str]:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here")
    script = COMPLETIONS / f"lmctl.{shell}"
    env = environment(daemon.socket, LINE=line, SCRIPT=str(script))
    env["PATH"] = f"{LMCTL.parent}:{env['PATH']}"
    quiet = {"bash": ["--norc"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    process = await asyncio.create_subprocess_exec(
        shell, *quiet, "-c", DRIVERS[shell], env=env, cwd=cwd,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert err == b"", err.decode()
    return set(out.decode().split())


@pytest.fixture(params=["bash", "zsh", "fish"])
def shell(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def stocked(daemon: FakeDaemon) -> FakeDaemon:
    models = ("tiny-chat", "qwen/qwen3-8b@q4_k_m", "odd name")
    daemon.models = [ModelRow(key, "/x", "llm", "", "", 0, 0, 0) for key in models]
    daemon.presets = [PresetRow("counter", "/p", "tiny-chat", aliases=["gpt-count"])]
    daemon.instances = [InstanceRow("tiny-chat:2", "tiny-chat", "ready")]
    return daemon


async def test_the_files_are_what_the_command_prints(shell: str, lmctl: Run) -> None:
    ran = await lmctl("completion", shell)
    assert ran.code == 0
    assert ran.out == (COMPLETIONS / f"lmctl.{shell}").read_text(), "run 'make completions'"


async def test_commands_and_options_are_offered(shell: str, stocked: FakeDaemon) -> None:
    assert await offered(shell, "lmctl ", stocked) == {child.path[0] for child in commands().children}
    assert await offered(shell, "lmctl lo", stocked) == {"load", "log"}
    assert await offered(shell, "lmctl --json downloads re", stocked) == {"resume"}
    assert await offered(shell, "lmctl load --context", stocked) == {"--context-length"}
    assert await offered(shell, "lmctl log --source ", stocked) == {"model", "server"}
    assert await offered(shell, "lmctl completion z", stocked) == {"zsh"}


async def test_names_come_from_the_daemon(shell: str, stocked: FakeDaemon) -> None:
    assert await offered(shell, "lmctl show t", stocked) == {"tiny-chat"}
    assert await offered(shell, "lmctl chat ", stocked) == {
        "tiny-chat",
        "qwen/qwen3-8b@q4_k_m",
        "counter",
        "gpt-count",
        "tiny-chat:2",
    }
    assert await offered(shell, "lmctl preset show g", stocked) == {"gpt-count"}
    assert await offered(shell, "lmctl --socket /x load --ttl 5m c", stocked) == {"counter"}


async def test_a_name_is_completed_behind_its_own_punctuation(shell: str, stocked: FakeDaemon) -> None:
    # Readline replaces the word behind the last ':' or '@' alone, the other shells all of it.
    rest = {"bash": ({"2"}, {"q4_k_m"})}.get(shell, ({"tiny-chat:2"}, {"qwen/qwen3-8b@q4_k_m"}))
    assert await offered(shell, "lmctl unload tiny-chat:", stocked) == rest[0]
    assert await offered(shell, "lmctl show qwen/qwen3-8b@q", stocked) == rest[1]


async def test_files_are_offered_where_a_file_is_meant(shell: str, stocked: FakeDaemon, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").touch()
    assert await offered(shell, "lmctl import mod", stocked, tmp_path) == {"model.gguf"}


async def test_without_a_daemon_nothing_is_offered_and_nothing_is_said(shell: str, tmp_path: Path) -> None:
    assert await offered(shell, "lmctl load ", FakeDaemon(tmp_path / "none.sock")) == set()


async def test_every_argument_that_names_something_is_completed() -> None:
    """A new command's argument is either known here or said to be the user's own."""
    from lmctl.shells import _ARGUMENTS, _words

    own = {("get",), ("token", "create")}
    for command in commands().walk():
        for argument in command.arguments:
            assert command.path in _ARGUMENTS or command.path in own or _words(argument.metavar), command.path


async def test_an_unknown_shell_is_wrong_usage(lmctl: Run) -> None:
    ran = await lmctl("completion", "tcsh")
    assert (ran.code, "bash, zsh or fish" in ran.err) == (2, True)
