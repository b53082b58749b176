"""Where what takes long to make lies: sources, the peer's build, generated models. Never in the repository."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$LMD_CACHE``, else ``$XDG_CACHE_HOME/lmd-bench``, else ``~/.cache/lmd-bench``; created where it is missing.

    Outside the checkout by default, so that clean checkouts share what was built once.
    """
    chosen = os.environ.get("LMD_CACHE")
    path = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lmd-bench"
    path.mkdir(parents=True, exist_ok=True)
    return path.resolve()
