"""A device to offload to where there is no GPU: llama.cpp's RPC backend, served by this machine's CPU.

To llama.cpp such a device is a GPU: it has its own memory, layers go there by the same rules, and the compute graph is
split over it and the host. So everything about offloading but its speed can be tested anywhere. The backend is built
from llama-cpp-python's source (`tests.bench.llama_source`) with g++, half a minute, once.

    python -m tests.bench.remote_device serve PORT           # a device, until killed
    python -m tests.bench.remote_device worker PORTS FD      # lmd's worker, with the devices at these ports (a,b)
"""

import contextlib
import ctypes
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.bench import llama_source
from tests.bench.cache import cache_dir

_START_SECONDS = 60.0


class Unavailable(Exception):
    """There is no compiler, or no source that is here already. Says what to do."""


def library() -> Path:
    """The RPC backend as a library that fits the installed llama.cpp, built if need be."""
    built = cache_dir() / f"libggml-rpc-{llama_source.version()}.so"
    if built.exists():
        return built
    compiler = shutil.which("g++")
    root = llama_source.find()
    if compiler is None or root is None:
        raise Unavailable("It takes g++ and llama.cpp's source: python -m tests.bench.llama_source fetches that.")
    ggml = root / "vendor/llama.cpp/ggml"
    installed = _installed()
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        made = Path(folder) / built.name
        sources = [ggml / "src/ggml-rpc/ggml-rpc.cpp", ggml / "src/ggml-rpc/transport.cpp"]
        includes = [f"-I{ggml / path}" for path in ("include", "src", "src/ggml-rpc")]
        defines = ["-DGGML_BACKEND_DL", "-DGGML_BACKEND_BUILD", "-DGGML_BACKEND_SHARED", "-DGGML_SHARED"]
        command = [compiler, "-O1", "-std=c++17", "-fPIC", "-shared", *defines, *includes, *map(str, sources)]
        done = subprocess.run(
            [*command, "-o", str(made), f"-L{installed}", "-lggml-base"], capture_output=True, text=True
        )
        if done.returncode:
            raise Unavailable(f"The RPC backend cannot be built: {done.stderr[-2000:]}")
        made.rename(built)
    return built


def _installed() -> Path:
    import llama_cpp

    return Path(llama_cpp.__file__).parent / "lib"


def _llama() -> Any:
    """libllama, which brings the ggml that it uses; the copy in `llama_cpp._ggml` is another."""
    import llama_cpp.llama_cpp as bindings

    llama = bindings._lib
    llama.ggml_backend_load.argtypes, llama.ggml_backend_load.restype = [ctypes.c_char_p], ctypes.c_void_p
    llama.ggml_backend_register.argtypes = [ctypes.c_void_p]
    llama.ggml_backend_dev_by_type.argtypes = [ctypes.c_int]
    llama.ggml_backend_dev_by_type.restype = ctypes.c_void_p
    if not llama.ggml_backend_load(str(library()).encode()):
        raise Unavailable(f"{library()} cannot be loaded; remove it to build it anew.")
    return llama


def join(ports: Sequence[int]) -> None:
    """Give this process the devices at ``ports``. Before a model is loaded."""
    llama, rpc = _llama(), ctypes.CDLL(str(library()))
    rpc.ggml_backend_rpc_add_server.argtypes = [ctypes.c_char_p]
    rpc.ggml_backend_rpc_add_server.restype = ctypes.c_void_p
    for port in ports:
        llama.ggml_backend_register(rpc.ggml_backend_rpc_add_server(f"127.0.0.1:{port}".encode()))


def serve(port: int) -> None:
    """Be a device; does not return."""
    llama, rpc = _llama(), ctypes.CDLL(str(library()))
    cpu = llama.ggml_backend_dev_by_type(0)
    start = rpc.ggml_backend_rpc_start_server
    start.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_void_p]
    start(f"127.0.0.1:{port}".encode(), None, 1, 1, (ctypes.c_void_p * 1)(cpu))


@contextlib.contextmanager
def devices(n: int) -> Iterator[list[int]]:
    """``n`` devices, each a process of its own, and their ports. Raises Unavailable."""
    library()
    ports = [_free_port() for _ in range(n)]
    servers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.bench.remote_device", "serve", str(port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for port in ports
    ]
    try:
        for port in ports:
            _await(port)
        yield ports
    finally:
        for server in servers:
            server.kill()
            server.wait()


def worker_command(ports: Sequence[int]) -> tuple[str, ...]:
    """What starts a worker (`lmd.worker.process.WorkerProcess.spawn`) that has these devices."""
    return (sys.executable, "-m", "tests.bench.remote_device", "worker", ",".join(map(str, ports)))


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _await(port: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError as exc:
            if time.monotonic() > deadline:
                raise Unavailable(f"The device at port {port} did not start.") from exc
            time.sleep(0.05)
        else:
            return


def _main(arguments: Sequence[str]) -> None:
    match arguments:
        case ["serve", port]:
            serve(int(port))
        case ["worker", ports, fd]:
            join([int(port) for port in ports.split(",")])
            sys.argv = ["worker", fd]
            from lmd.worker.main import main

            os._exit(main())
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    _main(sys.argv[1:])
