from pathlib import Path

import pytest

from lmd.config.store import ConfigStore


class Site:
    """A configuration directory, as an operator edits it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = folder / "lmd.toml"
        self.presets = folder / "presets.d"
        self.presets.mkdir()
        self.settings.write_text('[paths]\npresets = "presets.d"\n')

    def write(self, name: str, text: str) -> Path:
        path = self.presets / f"{name}.toml"
        path.write_text(text)
        return path

    def store(self) -> ConfigStore:
        return ConfigStore(self.settings, environ={"HOME": str(self.folder)})


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)
