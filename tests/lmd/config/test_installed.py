"""The files that are installed say what the program does."""

import re
import tomllib
from pathlib import Path

from lmd.config.layers import flatten, load_settings
from lmd.config.preset import read_preset_file
from lmd.config.schema import leaves
from lmd.config.settings import Settings

ETC = Path(__file__).parents[3] / "etc/lmd"


def uncommented(text: str) -> str:
    return re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE)


def test_the_installed_settings_are_valid_and_say_nothing() -> None:
    loaded = load_settings(ETC / "lmd.toml", environ={}, uid=0)
    assert set(loaded.origins.values()) == {"default"}


def test_the_installed_settings_show_every_default_as_it_is(tmp_path: Path) -> None:
    shown = tmp_path / "lmd.toml"
    shown.write_text(uncommented((ETC / "lmd.toml").read_text()))
    loaded = load_settings(shown, environ={}, uid=0)
    real = flatten(load_settings(ETC / "lmd.toml", environ={}, uid=0).settings)
    for key, value in flatten(loaded.settings).items():
        if not key.startswith("defaults."):
            assert loaded.origins[key] != "default", f"{key} is not in etc/lmd/lmd.toml"
            assert value == real[key]


def test_the_sample_preset_is_valid_and_shows_every_key(tmp_path: Path) -> None:
    sample = (ETC / "presets.d/example.toml.sample").read_text()
    (tmp_path / "sample.toml").write_text(sample)
    assert read_preset_file(tmp_path / "sample.toml").said.model == "owner/repo@q4_k_m"
    everything = uncommented(sample).replace("my.jinja", "sample.toml")
    (tmp_path / "everything.toml").write_text(everything)
    said = read_preset_file(tmp_path / "everything.toml").said
    shown = tomllib.loads(everything)
    assert {f"{table}.{key}" for table in ("load", "sampling", "chat") for key in shown[table]} | {
        key for key in shown if key not in {"load", "sampling", "chat"}
    } == set(leaves(type(said)))


def test_the_documentation_names_every_key() -> None:
    text = (ETC.parents[1] / "docs/configuration.md").read_text()
    missing = [key for key in leaves(Settings) if f"`{key.rpartition('.')[2]}`" not in text]
    assert missing == []
