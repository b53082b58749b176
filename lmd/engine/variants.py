"""Backends that ggml loads when it starts, each a module of its own: what lmd's packages bring for every processor.

A llama.cpp built with GGML_BACKEND_DL links none. With GGML_CPU_ALL_VARIANTS there is one module for each family of
processors; ggml asks each how well it suits this one and keeps the best. Built for one machine, all this is linked.
"""

import ctypes
import os
from pathlib import Path


def load(libllama: ctypes.CDLL, package: Path) -> None:
    """Have the ggml that ``libllama`` is linked with load the modules beside ``package``, llama_cpp's own folder.

    Does nothing where backends are linked, or were loaded before. Without any backend llama.cpp loads no model, and
    says so. Call it before llama_backend_init, on the very libllama that computes: each ggml has a registry of its own.
    """
    libllama.ggml_backend_reg_count.restype = ctypes.c_size_t
    libllama.ggml_backend_load_all_from_path.argtypes = [ctypes.c_char_p]
    libllama.ggml_backend_load_all_from_path.restype = None
    # Packages put them beside libllama; in a wheel they are in site-packages/bin.
    for folder in (package / "lib", package.parent / "bin"):
        if libllama.ggml_backend_reg_count():
            return
        if any(folder.glob("libggml-cpu*.so")):
            libllama.ggml_backend_load_all_from_path(os.fsencode(folder))
