"""The Debian packages in $LMD_PACKAGES, through their life in clean machines: `make test-package` builds and runs this.

A box is a real systemd over a fresh debootstrap without a network. The tests of one release share a box, in the order
of a package's life.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd.conftest import PRESET, REPOSITORY, SDBOX, Box, apt, clean_root, eventually, left_over, why_not

PACKAGES = Path(os.environ.get("LMD_PACKAGES", "/nonexistent"))
DEBS = sorted(PACKAGES.glob("lmd_*.deb"))
REASON = why_not() if DEBS else "'make test-package' builds the packages and runs this"
pytestmark = [pytest.mark.skipif(bool(REASON), reason=REASON), pytest.mark.timeout(1200)]

STARTED = "MESSAGE_ID=39f53479d3a045ac8e11786248231fbf"
"""systemd's record of a unit that has finished starting."""
EDITED = '[models]\nttl = "7m"\n'

#: What each of ggml's modules for x86-64 needs of /proc/cpuinfo's flags (ggml/src/CMakeLists.txt).
AVX512 = {"avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"}
HASWELL = {"sse4_2", "avx", "f16c", "fma", "bmi2", "avx2"}
FLAGS = {
    "x64": set(),
    "sse42": {"sse4_2"},
    "sandybridge": {"sse4_2", "avx"},
    "ivybridge": {"sse4_2", "avx", "f16c"},
    "piledriver": {"sse4_2", "avx", "f16c", "fma"},
    "haswell": HASWELL,
    "alderlake": HASWELL | {"avx_vnni"},
    "skylakex": HASWELL | AVX512,
    "cannonlake": HASWELL | AVX512 | {"avx512vbmi"},
    "cascadelake": HASWELL | AVX512 | {"avx512_vnni"},
    "cooperlake": HASWELL | AVX512 | {"avx512_vnni", "avx512_bf16"},
    "icelake": HASWELL | AVX512 | {"avx512vbmi", "avx512_vnni"},
    "zen4": HASWELL | AVX512 | {"avx512vbmi", "avx512_vnni", "avx512_bf16"},
    "sapphirerapids": HASWELL | AVX512 | {"avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"},
}


@pytest.fixture(scope="module", params=DEBS or ["none"], ids=lambda deb: Path(deb).name)
def deb(request: pytest.FixtureRequest) -> Path:
    return Path(request.param)


@pytest.fixture(scope="module")
def newer(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same package with a later version."""
    place = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "-R", deb, place / "root"], check=True)
    control = place / "root/DEBIAN/control"
    control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 1000~"))
    subprocess.run(["dpkg-deb", "-Zgzip", "-z1", "--build", place / "root", place / "lmd.deb"], check=True)
    subprocess.run(["rm", "-rf", place / "root"], check=True)
    return place / "lmd.deb"


@pytest.fixture(scope="module")
def box(deb: Path, newer: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """A clean Debian of the package's release."""
    base = tmp_path_factory.mktemp("box")
    environ = {**os.environ, "SDBOX_DIR": str(base), "LOWER": str(clean_root(deb))}
    for left in left_over():
        subprocess.run(["bash", SDBOX, "down", left], env=environ)
    box = Box(f"lmd-{os.getpid()}-deb", base)
    binds = [f"--bind-ro={place}" for place in (f"{deb.parent}:/old", f"{newer.parent}:/new")]
    models = f"--bind-ro={REPOSITORY / 'tests/models'}:/models"
    flags = ["--private-network", "--system-call-filter=bpf", *binds, models]
    try:
        up = subprocess.run(
            ["bash", SDBOX, "up", box.name, *flags],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert up.stdout.strip() == "running", f"the box is not well: {up.stdout}"
        yield box
    finally:
        subprocess.run(["bash", SDBOX, "down", box.name], env=environ, check=True)


def exists(box: Box, path: str) -> bool:
    return box.run("test", "-e", path).returncode == 0


def starts(box: Box) -> int:
    box("journalctl", "--sync")
    return box("journalctl", "-o", "cat", "--no-pager", STARTED, "UNIT=lmd.service").count("\n")


def test_on_a_clean_machine_it_installs_without_a_network_or_a_compiler_and_serves(box: Box, deb: Path) -> None:
    assert not exists(box, "/usr/bin/python3.11")
    assert not exists(box, "/usr/bin/python3.13")
    apt(box, "install", f"/old/{deb.name}")
    assert not exists(box, "/usr/bin/cc")
    assert box.show("ActiveState") == "active"
    assert box("systemctl", "is-enabled", "lmd").strip() == "enabled"
    assert box.run("systemctl", "is-enabled", "lmd.socket").stdout.strip() == "disabled"
    assert starts(box) == 1
    box("install", "-o", "lmd", "-g", "lmd", "-m", "640", "/models/tiny-chat.gguf", "/var/lib/lmd/models/")
    eventually(lambda: "tiny-chat" in [model["id"] for model in box.get("/v1/models")["data"]])
    box("lmctl", "load", "tiny-chat")
    assert "1" in box.ask()


def test_of_the_processors_variants_it_loads_the_one_that_uses_most_of_this_one(box: Box) -> None:
    (row,) = json.loads(box("lmctl", "ps", "--json"))
    maps = box("cat", f"/proc/{row['pid']}/maps")
    loaded = {
        line.rsplit("libggml-cpu-", 1)[1].removesuffix(".so") for line in maps.splitlines() if "libggml-cpu-" in line
    }
    assert len(loaded) == 1, loaded
    (variant,) = loaded
    print(f"{row['pid']} computes with {variant}")
    if os.uname().machine != "x86_64":
        return
    cpu = set(next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")).split())
    assert FLAGS[variant] <= cpu
    better = [name for name, flags in FLAGS.items() if flags <= cpu and flags > FLAGS[variant]]
    assert better == []


def test_nothing_of_it_can_be_changed_by_the_daemon_and_modules_are_compiled(box: Box) -> None:
    assert box("find", "/usr/lib/lmd", "!", "-user", "root").strip() == ""
    assert box("find", "/usr/lib/lmd", "!", "-type", "l", "-perm", "/022").strip() == ""
    assert "lmd/__pycache__/daemon.cpython-" in box("find", "/usr/lib/lmd", "-name", "daemon.*.pyc")
    assert box.run("runuser", "-u", "lmd", "--", "touch", "/etc/lmd/lmd.toml").returncode != 0


def test_man_pages_and_completions_are_where_debian_looks(box: Box) -> None:
    for path in (
        "man/man1/lmctl.1.gz",
        "man/man8/lmd.8.gz",
        "bash-completion/completions/lmctl",
        "zsh/vendor-completions/_lmctl",
        "fish/vendor_completions.d/lmctl.fish",
    ):
        assert exists(box, f"/usr/share/{path}"), path


def test_an_upgrade_keeps_edits_and_restarts_once(box: Box) -> None:
    settings = box("cat", "/etc/lmd/lmd.toml")
    assert settings.count("[models]\n") == 1
    box.write("/etc/lmd/lmd.toml", settings.replace("[models]\n", EDITED))
    box.write("/etc/lmd/presets.d/counter.toml", PRESET)
    main, before = box.show("MainPID"), starts(box)
    apt(box, "install", "/new/lmd.deb")
    assert box.show("ActiveState") == "active"
    assert box.show("MainPID") != main
    assert starts(box) == before + 1
    assert EDITED in box("cat", "/etc/lmd/lmd.toml")
    assert not exists(box, "/etc/lmd/lmd.toml.dpkg-dist")
    assert box.ask("counter").startswith("1, 2, 3")


def test_an_upgrade_leaves_it_off_where_the_administrator_switched_it_off(box: Box, deb: Path) -> None:
    box("systemctl", "disable", "--quiet", "--now", "lmd")
    apt(box, "install", "--reinstall", "/new/lmd.deb")
    assert box.show("ActiveState") == "inactive"
    assert box.run("systemctl", "is-enabled", "lmd").stdout.strip() == "disabled"


def test_a_removal_stops_it_and_leaves_settings_and_models(box: Box) -> None:
    box("systemctl", "start", "lmd.socket")
    assert "1" in box.ask()
    apt(box, "remove", "lmd")
    assert box.run("curl", "-sS", "http://127.0.0.1:1234/v1/models").returncode != 0
    assert box.run("pgrep", "-u", "lmd").stdout == ""
    assert not exists(box, "/usr/lib/lmd")
    assert not exists(box, "/usr/bin/lmctl")
    assert EDITED in box("cat", "/etc/lmd/lmd.toml")
    assert exists(box, "/var/lib/lmd/models/tiny-chat.gguf")


def test_a_purge_that_nobody_answers_removes_settings_and_no_model(box: Box) -> None:
    apt(box, "purge", "lmd")
    assert not exists(box, "/etc/lmd/lmd.toml")
    assert exists(box, "/etc/lmd/presets.d/counter.toml")
    assert exists(box, "/var/lib/lmd/models/tiny-chat.gguf")


def test_a_purge_with_a_yes_removes_everything(box: Box, deb: Path) -> None:
    apt(box, "install", f"/old/{deb.name}")
    assert "1" in box.ask()
    box("debconf-set-selections", input="lmd lmd/purge_state boolean true\n")
    apt(box, "purge", "lmd")
    for path in ("/etc/lmd", "/var/lib/lmd", "/var/cache/lmd", "/usr/lib/lmd", "/run/lmd"):
        assert not exists(box, path), path
    assert box.run("systemctl", "list-unit-files", "--no-legend", "lmd*").stdout.strip() == ""
    assert box("find", "/etc/systemd", "/var/lib/systemd/deb-systemd-helper-enabled", "-name", "lmd*").strip() == ""


def test_lintian_finds_no_error(deb: Path) -> None:
    if subprocess.run(["bash", "-c", "command -v lintian"], capture_output=True).returncode:
        pytest.skip("lintian is not installed (apt install lintian)")
    found = subprocess.run(["lintian", "--fail-on", "error", deb], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
