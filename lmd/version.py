"""lmd's own version: that of the package as it was installed, which its build read from git's tags."""

from importlib.metadata import PackageNotFoundError, version
from typing import Final


def _installed() -> str:
    try:
        return version("lmd")
    except PackageNotFoundError:  # a checkout that runs without having been installed
        return "0+unknown"


VERSION: Final = _installed()
