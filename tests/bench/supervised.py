"""lmd under a supervisor: one configuration in one folder, started again as often as it ends."""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from tests.bench.daemon import ready_url
from tests.bench.server import ServerFailed, free_port, process, tail, until_healthy

_CONFIGURATION = """\
[server]
port = {port}
drain_timeout = "5s"
[control]
socket = "{folder}/lmd.sock"
[paths]
models = ["{folder}/models"]
presets = "{folder}/presets.d"
state = "{folder}/state"
cache = "{folder}/cache"
[defaults.load]
threads = 1
"""


class Supervised:
    """The daemon and its files. The folders are made; models, presets and more settings are the caller's to put in."""

    def __init__(
        self, folder: Path, settings: str = "", environ: Mapping[str, str] | None = None, logs: Path | None = None
    ) -> None:
        """``settings``: more of lmd.toml, after the section ``[defaults.load]``. ``folder``: a short path.

        ``logs``: the folder for the daemon's output, where it is another one.
        """
        self.folder = folder
        self._log_folder = logs or folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.socket = folder / "lmd.sock"
        self.life = 0
        """Counts the daemon's starts."""
        self.exit_code: int | None = None
        """Of the last life that ended."""
        self._environ = dict(environ or {})
        self._stack = AsyncExitStack()
        self._child: asyncio.subprocess.Process | None = None
        for part in ("models", "presets.d", "state", "cache"):
            (folder / part).mkdir(exist_ok=True)
        self.config.write_text(_CONFIGURATION.format(port=self.port, folder=folder) + settings)

    @property
    def config(self) -> Path:
        return self.folder / "lmd.toml"

    @property
    def logs(self) -> list[Path]:
        """One of each life."""
        return [self._log_folder / f"log-{life}" for life in range(1, self.life + 1)]

    @property
    def pid(self) -> int:
        assert self._child is not None
        return self._child.pid

    @property
    def is_up(self) -> bool:
        return self._child is not None and self._child.returncode is None

    async def start(self) -> None:
        """Start it and wait until it answers. ServerFailed where it does not."""
        self.life += 1
        log = self.logs[-1]
        command = ["env", *(f"{name}={value}" for name, value in self._environ.items())]
        command += [sys.executable, "-m", "lmd", "--config", str(self.config)]
        self._child = await self._stack.enter_async_context(process(command, log))
        await ready_url(self._child, log)
        await until_healthy(self._child, self.url, log)

    async def end(self, number: signal.Signals, patience: float = 30.0) -> None:
        """Send the signal and reap. ServerFailed where it has not ended after ``patience`` seconds."""
        assert self._child is not None
        os.kill(self._child.pid, number)
        try:
            self.exit_code = await asyncio.wait_for(self._child.wait(), patience)
        except TimeoutError:
            raise ServerFailed(
                f"lmd has not ended {patience:g} s after {number.name}:\n{tail(self.logs[-1])}"
            ) from None

    async def __aenter__(self) -> "Supervised":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
