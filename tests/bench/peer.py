"""The peer: ``llama-server`` of the very llama.cpp that the installed llama-cpp-python binds.

    python -m tests.bench.peer build            # 6–9 minutes on two cores, once for each version; prints the path
    python -m tests.bench.peer run FILE.gguf    # serves one model until interrupted

The build lies in the cache, keyed by version. It needs cmake, ninja and a C++ compiler.
"""

import argparse
import asyncio
import fcntl
import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import llama_source
from tests.bench.cache import cache_dir
from tests.bench.server import (
    Server,
    Setup,
    free_port,
    names_of,
    process,
    run_until_signalled,
    served_models,
    until_healthy,
)

_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
_TARGETS = ("llama-server", "llama-bench")


class BuildFailed(Exception):
    """The peer cannot be built here. Says what is missing or what the compiler said."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A finished build."""

    server: Path
    bench: Path
    version: str
    """Of llama-cpp-python, which names the llama.cpp commit."""


def _folder(version: str) -> Path:
    return cache_dir() / f"llama.cpp-{version}"


def find() -> Peer | None:
    """The peer of the installed version, if it is already built; builds nothing."""
    version = llama_source.version()
    server, bench = (_folder(version) / "bin" / target for target in _TARGETS)
    return Peer(server, bench, version) if server.is_file() and bench.is_file() else None


def build() -> Peer:
    """The peer, built if need be (minutes). BuildFailed, or llama_source.SourceMissing, where that cannot be done.

    A build that was cut off goes on where it stopped; a second process waits for the first.
    """
    if peer := find():
        return peer
    missing = [tool for tool in ("cmake", "ninja", "c++") if shutil.which(tool) is None]
    if missing:
        raise BuildFailed(f"{', '.join(missing)} not found: apt install cmake ninja-build g++")
    folder = _folder(llama_source.version())
    folder.mkdir(exist_ok=True)
    with (folder / "lmd-build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if find() is None:
            _run("cmake", "-S", llama_source.llama_cpp(), "-B", folder, "-G", "Ninja", *_OPTIONS)
            _run("ninja", "-C", folder, *_TARGETS)
    if peer := find():
        return peer
    raise BuildFailed(
        f"ninja ended well, but there is no bin/llama-server in {folder}: remove that folder and try again"
    )


def _run(*command: str | Path) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise BuildFailed(f"{command[0]} failed with {done.returncode}:\n{done.stdout[-4000:]}")


@asynccontextmanager
async def llama_server(setup: Setup) -> AsyncIterator[Server]:
    """Run llama-server (its router where `Setup.models` are several) as long as the context lasts."""
    peer = await asyncio.to_thread(build)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with TemporaryDirectory(dir=cache_dir(), prefix="peer-") as folder:
        common = [
            *("--host", "127.0.0.1", "--port", str(port), "--threads", str(setup.threads)),
            *("--parallel", str(setup.parallel), "--ctx-size", str(setup.n_ctx * setup.parallel)),
            *("--jinja", "--no-webui"),
            *(["--embeddings"] if setup.embeds else []),
        ]
        if len(setup.models) == 1:
            which: list[str | Path] = ["--model", setup.models[0]]
        else:
            models = Path(folder, "models")
            models.mkdir()
            for path in setup.models:
                (models / path.name).symlink_to(path)
            which = ["--models-dir", models, "--models-max", "1"]
        log = Path(folder, "log")
        async with process([peer.server, *which, *common], log) as child:
            await until_healthy(child, url, log)
            names = names_of(setup.models, await served_models(url))
            yield Server(name="llama-server", url=url, pid=child.pid, models=names)


async def _serve(model: Path) -> None:
    async with llama_server(Setup(models=(model,))) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peer", description="Build or run llama-server.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="build it, if it is not in the cache, and print where it is")
    commands.add_parser("run", help="serve one model until interrupted").add_argument("model", type=Path)
    given = parser.parse_args(argv)
    try:
        if given.command == "build":
            print(build().server)
        else:
            run_until_signalled(_serve(given.model))
    except KeyboardInterrupt:
        pass
    except (BuildFailed, llama_source.SourceMissing) as exc:
        raise SystemExit(f"peer: {exc}") from exc


if __name__ == "__main__":
    main()
