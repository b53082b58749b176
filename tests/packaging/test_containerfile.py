"""The Containerfile, read: nothing here can build it."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from lmd.config.places import default_places
from lmd.protocol import default_sockets

ROOT = Path(__file__).parents[2]
COMPILERS = {"g++", "gcc", "clang", "cmake", "make", "ninja-build", "build-essential", "git", "python3-venv", "nvcc"}


@dataclass
class Stage:
    name: str
    lines: list[tuple[str, str]] = field(default_factory=list)
    """Instructions with their arguments."""

    def all(self, instruction: str) -> list[str]:
        return [rest for name, rest in self.lines if name == instruction]

    def one(self, instruction: str) -> str:
        (found,) = self.all(instruction)
        return found


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Comments left out, continued lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    found = [Stage("before the first")]
    for name, rest in instructions((ROOT / "packaging" / "Containerfile").read_text()):
        if name == "FROM":
            found.append(Stage(rest.split(" AS ")[-1]))
        found[-1].lines.append((name, rest))
    return found


@pytest.fixture(scope="module")
def final(stages: list[Stage]) -> Stage:
    return stages[-1]


def packages(stage: Stage) -> set[str]:
    found: set[str] = set()
    for command in stage.all("RUN"):
        for part in command.split("&&"):
            words = shlex.split(part) if "apt-get install" in part else []
            found |= {word for word in words[words.index("install") + 1 :] if word[0] not in "-$"} if words else set()
    return found


def environment(stage: Stage) -> dict[str, str]:
    return dict(pair.split("=", 1) for rest in stage.all("ENV") for pair in shlex.split(rest))


def test_what_is_copied_exists_and_is_tracked(stages: list[Stage]) -> None:
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files"], capture_output=True, text=True, check=True).stdout.split()
    names = [stage.name for stage in stages]
    for stage in stages:
        for rest in stage.all("COPY"):
            *sources, _ = [word for word in rest.split() if not word.startswith("--")]
            if origin := re.search(r"--from=(\S+)", rest):
                assert origin[1] in names
                continue
            for source in sources:
                prefix = "" if source == "." else source
                assert any(path == prefix or path.startswith(prefix) for path in tracked), source


def test_nothing_that_is_tracked_is_left_out_of_the_build(stages: list[Stage]) -> None:
    """A checkout without some of its files is one that was changed, and so would be the version."""
    command = ["git", "-C", ROOT, "ls-files", "--cached", "--ignored", "--exclude-from=.dockerignore"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == ""


def test_shell_commands_can_be_parsed(stages: list[Stage]) -> None:
    for stage in stages:
        for command in stage.all("RUN"):
            if command.startswith("["):
                assert json.loads(command)
            else:
                subprocess.run(["sh", "-n", "-c", command], check=True)


def test_the_version_of_llama_cpp_python_is_found_where_the_build_looks(stages: list[Stage]) -> None:
    command = next(run for stage in stages for run in stage.all("RUN") if "pinned=" in run)
    sed = command.split("&&")[0].replace("/src/", f"{ROOT}/")
    told = subprocess.run(["sh", "-c", f"{sed}; echo $pinned"], capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", told)


def test_the_final_image_has_no_compiler_and_no_root(final: Stage) -> None:
    assert "python3" in packages(final)
    assert not packages(final) & COMPILERS
    user, group = final.one("USER").split(":")
    assert int(user) > 0 and int(group) > 0
    # As root only what makes the user and its directories.
    assert [name for name, _ in final.lines].index("USER") < [name for name, _ in final.lines].index("ENTRYPOINT")


def test_its_settings_are_lmds(final: Stage) -> None:
    said = environment(final)
    config = ROOT / "etc" / "lmd" / "lmd.toml"
    ran = subprocess.run(
        [sys.executable, "-m", "lmd", "--config", str(config), "--print-config"],
        capture_output=True, text=True, env={**os.environ, **said},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    for name in said:
        if name.startswith("LMD_") and "__" in name:
            assert f"env {name}" in ran.stdout, name
    # Serving an address that others reach needs tokens; without them lmd would refuse to start.
    assert (said["LMD_SERVER__HOST"], said["LMD_SERVER__AUTH"]) == ("0.0.0.0", "on")
    port = next(line for line in ran.stdout.splitlines() if line.startswith("port"))
    assert final.one("EXPOSE") in port


def test_its_files_are_where_the_image_made_room_for_them(final: Stage) -> None:
    """Not below the home of a user that is not root: the volume's models and /etc/lmd's presets would be passed by."""
    places = default_places(environment(final), uid=10001)
    assert places.config_files[0] == Path("/etc/lmd/lmd.toml")
    assert places.presets == Path("/etc/lmd/presets.d")
    made = next(part for run in final.all("RUN") for part in run.split("&&") if "install -d -o lmd" in part)
    assert {places.state, places.models, places.cache, places.socket.parent} <= {Path(word) for word in made.split()}
    assert str(places.state) in json.loads(final.one("VOLUME"))
    assert default_sockets(environment(final), uid=10001)[0] == str(places.socket)  # lmctl's, and the health check's


def test_the_health_check_and_the_entry_are_commands_of_ours(final: Stage) -> None:
    check = json.loads(final.one("HEALTHCHECK").partition("CMD ")[2])
    assert check == ["lmctl", "status"]
    ran = subprocess.run([sys.executable, "-c", "from lmctl.cli import main; main()", *check[1:], "--help"])
    assert ran.returncode == 0
    assert json.loads(final.one("ENTRYPOINT")) == ["lmd"]
    assert environment(final)["PATH"].split(":")[0] == "/opt/lmd/bin"


def test_documented_arguments_are_there(stages: list[Stage]) -> None:
    declared = {rest.split("=")[0] for stage in stages for rest in stage.all("ARG")}
    documented = set(re.findall(r"--build-arg (\w+)=", (ROOT / "docs" / "container.md").read_text()))
    assert documented and documented <= declared
