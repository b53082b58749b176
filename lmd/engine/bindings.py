"""llama-cpp-python without the half of it that a worker never uses."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def take_alone() -> None:
    """Have ``import llama_cpp.llama_cpp`` import that module, and not the package's own ``__init__`` before it.

    That one brings the high-level API with Jinja, a disk cache and SQLite: 0.1 s of every worker's start and 7 MiB of
    each, the waiting one included. In its place stands a package of the same path, which knows its version, its
    submodules and the bindings' names (llguidance asks for them there). Call it before anything imports llama_cpp, in
    a process that wants the bindings only.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        return  # the import that follows tells what is wrong
    package = ModuleType("llama_cpp", "The bindings alone.")
    package.__spec__, package.__file__ = spec, spec.origin
    package.__path__ = list(spec.submodule_search_locations)
    version = _version(Path(spec.origin).read_text(encoding="utf-8"))
    vars(package).update(__version__=version, __getattr__=_of_bindings)
    sys.modules["llama_cpp"] = package


def _of_bindings(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    found = getattr(sys.modules["llama_cpp.llama_cpp"], name)
    setattr(sys.modules["llama_cpp"], name, found)  # llguidance asks for each token of a vocabulary
    return found


def _version(source: str) -> str:
    """What ``__init__`` says; asking the package's metadata would import an e-mail parser."""
    said = re.search(r'^__version__ = "(.+)"', source, re.MULTILINE)
    return said[1] if said is not None else "unknown"
