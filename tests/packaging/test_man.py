"""The man pages: as the code has them now, and readable by man itself."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

from lmctl.tree import commands
from lmd.__main__ import parser
from lmd.config.preset import SCHEMA
from lmd.config.schema import leaves
from lmd.config.settings import Settings

MAN = Path(__file__).parents[2] / "packaging" / "man"
PAGES = ("lmctl.1", "lmd.8", "lmd.toml.5", "lmd-preset.5")


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_man", MAN / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(name: str) -> str:
    """A page as people see it, in one column that breaks no line. Fails where man has anything to complain about."""
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("there is no man here")
    env = {**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "1000", "MANROFFOPT": "", "PAGER": "cat"}
    ran = subprocess.run(["man", "--warnings", "-l", str(MAN / name)], capture_output=True, text=True, env=env)
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout


def test_the_pages_are_what_the_code_says_now() -> None:
    made = generator().pages()
    assert set(made) == set(PAGES) == {path.name for path in MAN.iterdir() if path.suffix[1:].isdigit()}
    for name, text in made.items():
        assert (MAN / name).read_text() == text, f"{name}: run 'make man'"


def test_every_command_and_option_of_lmctl_is_told() -> None:
    page = read("lmctl.1")
    for command in commands().walk():
        assert " ".join(("lmctl", *command.path)) in page
        assert all(name in page for option in command.options for name in option.names)
    assert "0 done, 1 failed, 2 wrong usage, 3 lmd cannot be reached." in page


def test_every_flag_of_lmd_is_told() -> None:
    page = read("lmd.8")
    assert all(name in page for action in parser()._actions for name in action.option_strings)


@pytest.mark.parametrize(("name", "schema"), [("lmd.toml.5", Settings), ("lmd-preset.5", SCHEMA)])
def test_every_key_stands_in_its_table_with_its_type(name: str, schema: type) -> None:
    lines = read(name).splitlines()
    table, told = "", set()
    for line in lines:
        if line.startswith("   ["):
            table = line.strip().strip("[]") + "."
        elif line.startswith("       ") and not line.startswith("        ") and line.strip():
            told.add(table + line.split()[0])
    assert set(leaves(schema)) <= told


def test_backslashes_dashes_and_leading_dots_are_text() -> None:
    module = generator()
    assert module.prose(".TH `a-b` \\n") == "\\&.TH \\fBa\\-b\\fR \\en"
    assert module.prose("'quoted'") == "\\&'quoted'"
