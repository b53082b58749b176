"""llama-cpp-python's source distribution, unpacked: vocabularies, chat templates, and llama.cpp to build the peer from.

It is that of the installed version, so whatever is built from it is the very llama.cpp that lmd binds.
Fetched once with pip into the cache (77 MB); ``$LLAMA_CPP_PYTHON_SOURCE`` points to an unpacked one instead.

    python -m tests.bench.llama_source     # fetches it if need be and prints where it is
"""

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from tests.bench.cache import cache_dir

PACKAGE = "llama-cpp-python"


class SourceMissing(Exception):
    """The source distribution is not there and was not, or could not be, fetched. Says what to do."""


def version() -> str:
    """The installed llama-cpp-python's version (found without importing it)."""
    return importlib.metadata.version(PACKAGE)


def find() -> Path | None:
    """The unpacked source distribution of the installed version, if it is already here; fetches nothing."""
    given = os.environ.get("LLAMA_CPP_PYTHON_SOURCE")
    path = Path(given) if given else cache_dir() / f"llama_cpp_python-{version()}"
    if (path / "vendor/llama.cpp/CMakeLists.txt").is_file():
        return path
    if given:
        raise SourceMissing(
            f"LLAMA_CPP_PYTHON_SOURCE={given} holds no vendor/llama.cpp: point it to an unpacked source distribution."
        )
    return None


def source() -> Path:
    """The unpacked source distribution, fetched if need be. SourceMissing where pip cannot get it."""
    return find() or _fetch()


def llama_cpp() -> Path:
    """llama.cpp's own source tree within `source`."""
    return source() / "vendor/llama.cpp"


def vocabulary_file(name: str) -> Path:
    """``ggml-vocab-NAME.gguf``. SourceMissing, with the names there are, for any other."""
    return _named(llama_cpp() / "models", "ggml-vocab-", name, ".gguf", "vocabulary")


def template_file(name: str) -> Path:
    """``models/templates/NAME.jinja``. SourceMissing, with the names there are, for any other."""
    return _named(llama_cpp() / "models/templates", "", name, ".jinja", "chat template")


def _named(folder: Path, prefix: str, name: str, suffix: str, what: str) -> Path:
    path = folder / f"{prefix}{name}{suffix}"
    if not path.is_file():
        names = sorted(p.name.removeprefix(prefix).removesuffix(suffix) for p in folder.glob(f"{prefix}*{suffix}"))
        raise SourceMissing(f"llama.cpp ships no {what} {name!r}. There are: {', '.join(names)}.")
    return path


def _fetch() -> Path:
    requirement = f"{PACKAGE}=={version()}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", PACKAGE, requirement]
    # Unpacked beside its final place and renamed: two processes may fetch at once, a cut-off one must not look whole.
    with tempfile.TemporaryDirectory(dir=cache_dir(), prefix="fetch-") as folder:
        done = subprocess.run([*command, "--dest", folder], capture_output=True, text=True)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode or not archives:
            raise SourceMissing(f"pip could not download {requirement}: {done.stderr.strip()[-2000:]}")
        with tarfile.open(archives[0]) as archive:
            archive.extractall(folder, filter="data")
        (unpacked,) = (path for path in Path(folder).iterdir() if path.is_dir())
        target = cache_dir() / f"llama_cpp_python-{version()}"
        try:
            unpacked.rename(target)
        except OSError:
            if find() is None:
                raise
        return target


if __name__ == "__main__":
    print(source())
