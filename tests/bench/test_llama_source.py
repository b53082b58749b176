"""The source is found, fetched with the real pip (from a package made here), or its absence is explained."""

import io
import tarfile
from pathlib import Path

import pytest

from tests.bench import llama_source
from tests.bench.llama_source import SourceMissing, find, source, template_file, vocabulary_file

_BACKEND = """
import os
def prepare_metadata_for_build_wheel(directory, config_settings=None):
    name = "llama_cpp_python-{version}.dist-info"
    os.mkdir(os.path.join(directory, name))
    with open(os.path.join(directory, name, "METADATA"), "w") as file:
        file.write("Metadata-Version: 2.1\\nName: llama-cpp-python\\nVersion: {version}\\n")
    return name
def build_wheel(directory, config_settings=None, metadata_directory=None):
    raise RuntimeError("a download builds nothing")
"""


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMD_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LLAMA_CPP_PYTHON_SOURCE", raising=False)


def make_source(folder: Path) -> None:
    files = {
        "vendor/llama.cpp/CMakeLists.txt": "",
        "vendor/llama.cpp/models/ggml-vocab-two.gguf": "",
        "vendor/llama.cpp/models/ggml-vocab-one.gguf": "",
        "vendor/llama.cpp/models/templates/Chat-A.jinja": "a",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def make_package(folder: Path) -> None:
    """A source distribution that pip can look into without any other package."""
    version = llama_source.version()
    top = f"llama_cpp_python-{version}"
    files = {
        "PKG-INFO": f"Metadata-Version: 2.1\nName: llama-cpp-python\nVersion: {version}\n",
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n',
        "backend.py": _BACKEND.format(version=version),
        "vendor/llama.cpp/CMakeLists.txt": "project(llama.cpp)\n",
    }
    with tarfile.open(folder / f"{top}.tar.gz", "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))


def test_nothing_is_found_in_an_empty_cache() -> None:
    assert find() is None


def test_the_source_is_fetched_once_and_found_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    make_package(packages)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    fetched = source()
    assert (fetched / "vendor/llama.cpp/CMakeLists.txt").read_text() == "project(llama.cpp)\n"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    assert source() == find() == fetched
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == [fetched.name]


def test_pips_reason_is_told_where_it_cannot_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(
        SourceMissing, match=r"pip could not download llama-cpp-python==[\s\S]*No matching distribution"
    ):
        source()
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_variable_points_to_another_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_source(tmp_path / "mine")
    monkeypatch.setenv("LLAMA_CPP_PYTHON_SOURCE", str(tmp_path / "mine"))
    assert source() == tmp_path / "mine"
    assert template_file("Chat-A").read_text() == "a"
    assert vocabulary_file("two").name == "ggml-vocab-two.gguf"


def test_a_variable_that_points_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_PYTHON_SOURCE", str(tmp_path))
    with pytest.raises(SourceMissing, match=r"holds no vendor/llama\.cpp"):
        find()


def test_an_unknown_name_is_answered_with_the_names_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_source(tmp_path / "mine")
    monkeypatch.setenv("LLAMA_CPP_PYTHON_SOURCE", str(tmp_path / "mine"))
    with pytest.raises(SourceMissing, match=r"no vocabulary 'three'. There are: one, two\."):
        vocabulary_file("three")
    with pytest.raises(SourceMissing, match=r"no chat template 'B'. There are: Chat-A\."):
        template_file("B")
