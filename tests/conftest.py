"""What really many tests share: the daemon, as its users start it."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says how busy the machine is.
settings.register_profile("lmd", deadline=None)
settings.load_profile("lmd")

# A shell's background job ignores SIGINT, and so would everything that the tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

MODELS = Path(__file__).parent / "models"
READY = re.compile(r"lmd ready on (http://\S+) \(control socket (.+)\)")


@dataclass(frozen=True)
class Daemon:
    """A running lmd: process, addresses, and the directories that are its own."""

    process: subprocess.Popen[str]
    url: str
    socket: Path
    directory: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def models(self) -> Path:
        return self.directory / "models"

    @property
    def presets(self) -> Path:
        return self.directory / "presets"

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def workers(self) -> list[int]:
        """Its child processes: one for each instance, and the standby."""
        children = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        return [int(pid) for pid in children.read_text().split()] if children.exists() else []

    def wait(self, timeout: float = 20) -> int:
        return self.process.wait(timeout)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.wait()


StartDaemon = Callable[..., Daemon]

CONFIG = """\
[server]
port = 0
[control]
socket = "{directory}/lmd.sock"
[paths]
models = ["{directory}/models"]
presets = "{directory}/presets"
state = "{directory}/state"
cache = "{directory}/cache"
[defaults.load]
threads = 1
"""
"""One thread: on a machine shared with other tests, llama.cpp's threads spin while they wait for each other."""


@pytest.fixture(scope="session")
def start_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartDaemon]:
    """``start_daemon(config="", presets={}, arguments=[], environ={}, models=[…])``: a daemon of the test's own.

    ``config`` is more of lmd.toml, ``presets`` files by name. Ends with the session, if the test did not end it.
    """
    started: list[Daemon] = []
    # Unix sockets' paths are short, pytest's directories are not.
    with tempfile.TemporaryDirectory(prefix="lmd-test-") as root:

        def start(
            config: str = "",
            presets: Mapping[str, str] | None = None,
            arguments: Sequence[str] = (),
            environ: Mapping[str, str] | None = None,
            models: Sequence[Path] = (MODELS / "tiny-chat.gguf", MODELS / "tiny-draft.gguf"),
        ) -> Daemon:
            directory = Path(tempfile.mkdtemp(dir=root))
            for name in ("models", "presets"):
                (directory / name).mkdir()
            for model in models:
                shutil.copy(model, directory / "models")
            for name, text in (presets or {}).items():
                (directory / "presets" / f"{name}.toml").write_text(text)
            (directory / "lmd.toml").write_text(CONFIG.format(directory=directory) + config)
            with (directory / "log").open("w") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "lmd", "--config", str(directory / "lmd.toml"), *arguments],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**_clean(os.environ), **(environ or {})},
                )
            assert process.stdout is not None
            line = process.stdout.readline()
            match = READY.fullmatch(line.rstrip("\n"))
            if match is None:
                process.kill()
                process.wait()
                raise AssertionError(f"lmd said {line!r} and not that it is ready:\n{(directory / 'log').read_text()}")
            daemon = Daemon(process, match[1], Path(match[2]), directory)
            started.append(daemon)
            return daemon

        yield start
        for daemon in started:
            if daemon.process.poll() is None:
                daemon.process.send_signal(signal.SIGTERM)
        for daemon in started:
            try:
                daemon.wait(60)  # all of them end at once
            except subprocess.TimeoutExpired:
                daemon.process.kill()
                daemon.process.wait()
                raise
            finally:
                assert daemon.process.stdout is not None
                daemon.process.stdout.close()


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    """Without what this machine's own lmd or systemd would tell it."""
    ours = ("LMD_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_", "JOURNAL_STREAM")
    return {name: value for name, value in environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="session")
def daemon(start_daemon: StartDaemon) -> Daemon:
    """One daemon with the tiny models for all tests that leave it as it is."""
    presets = {
        "counter": 'model = "tiny-chat"\naliases = ["gpt-count"]\n[sampling]\ntemperature = 0\n',
        "aloud": 'model = "tiny-chat"\n[chat]\nreasoning = "on"\ninline_reasoning = true\n',
        "bob": 'model = "tiny-chat"\n[sampling]\ntemperature = 0\n[chat]\nsystem_prompt = "Your name is Bob."\n',
    }
    return start_daemon(presets=presets)
