"""One commit is one version, wherever and however it is built."""

import shutil
import subprocess
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager

ROOT = Path(__file__).parents[2]


def git(folder: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")
    return subprocess.run(["git", "-C", folder, *who, *arguments], capture_output=True, text=True, check=True).stdout


def version(folder: Path) -> str:
    return ProjectMetadata(str(folder), PluginManager()).version


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository of two commits, with what the version depends on and no tags."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", ".gitattributes", ".git_archival.txt"):
        shutil.copy(ROOT / name, folder)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "one")
    git(folder, "commit", "-qm", "two", "--allow-empty")
    return folder


def head(folder: Path) -> str:
    return git(folder, "rev-parse", "HEAD").strip()


def test_a_tag_is_the_version(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    assert version(checkout) == "1.2.3"


def test_a_commit_after_a_tag_comes_before_the_next_version_and_is_named(checkout: Path) -> None:
    git(checkout, "tag", "v1.2.3", "HEAD~")
    base, commit = version(checkout).split("+g")
    assert base == "1.2.4.dev1"
    assert head(checkout).startswith(commit)


@pytest.mark.parametrize("depth", [(), ("--depth", "1")])
def test_a_clone_without_tags_names_its_commit(checkout: Path, tmp_path: Path, depth: tuple[str, ...]) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "-q", "--no-tags", *depth, checkout.as_uri(), str(clone))
    base, commit = version(clone).split("+g")
    assert base.startswith("0.1.dev")
    assert head(checkout).startswith(commit)


def test_an_archive_of_a_tag_has_its_version(checkout: Path, tmp_path: Path) -> None:
    git(checkout, "tag", "v1.2.3")
    git(checkout, "archive", "--output", str(tmp_path / "a.tar"), "--prefix=archive/", "HEAD")
    shutil.unpack_archive(tmp_path / "a.tar", tmp_path, filter="data")
    assert version(tmp_path / "archive") == "1.2.3"


def test_an_sdist_keeps_the_version_that_it_was_made_with(checkout: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sdist"
    folder.mkdir()
    shutil.copy(checkout / "pyproject.toml", folder)
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.4\nName: lmd\nVersion: 1.2.3\n")
    assert version(folder) == "1.2.3"


def test_a_copy_of_the_files_says_that_it_does_not_know(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    assert version(checkout) == "0.0"
