"""Which folder ggml is told to load its backends from. That it then picks well is seen in tests/packaging."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lmd.engine import llama, variants


class Ggml:
    """The two functions, of a ggml that registers one backend for each folder that it loads from."""

    def __init__(self, linked: int) -> None:
        self.loaded: list[bytes] = []

        def count() -> int:
            return linked + len(self.loaded)

        def load(folder: bytes) -> None:
            self.loaded.append(folder)

        self.library: Any = SimpleNamespace(ggml_backend_reg_count=count, ggml_backend_load_all_from_path=load)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "llama_cpp/lib").mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    (tmp_path / "llama_cpp/lib/libggml-base.so").touch()
    return tmp_path / "llama_cpp"


@pytest.mark.parametrize("place", ["llama_cpp/lib", "bin"])
def test_modules_beside_libllama_or_where_a_wheel_has_them_are_loaded(package: Path, place: str) -> None:
    folder = package.parent / place
    (folder / "libggml-cpu-haswell.so").touch()
    ggml = Ggml(linked=0)
    variants.load(ggml.library, package)
    assert ggml.loaded == [bytes(folder)]


def test_modules_are_loaded_from_one_folder_only(package: Path) -> None:
    for folder in (package / "lib", package.parent / "bin"):
        (folder / "libggml-cpu-x64.so").touch()
    ggml = Ggml(linked=0)
    variants.load(ggml.library, package)
    assert ggml.loaded == [bytes(package / "lib")]


def test_a_build_that_links_its_backends_is_left_alone(package: Path) -> None:
    (package / "lib/libggml-cpu.so").touch()
    ggml = Ggml(linked=1)
    variants.load(ggml.library, package)
    assert ggml.loaded == []


def test_the_usual_folders_are_not_searched_where_no_module_lies_beside(package: Path) -> None:
    ggml = Ggml(linked=0)
    variants.load(ggml.library, package)
    assert ggml.loaded == []


def test_llama_cpp_has_one_processor_backend_however_it_was_built(backend: llama.Backend) -> None:
    assert [device.kind for device in backend.devices()].count("cpu") == 1
