"""A real systemd in a throw-away box (`sdbox`), with lmd installed in it as people install it.

As a rule the box is over this machine's root, with lmd of the checkout. Its environment is made once with Debian's
Python, under /opt, and kept between runs: the checkout's own may be on a Python that no other user can read. The box
sees it through its overlay, and adds lmd itself.

With $LMD_BOX_PACKAGE, a Debian package, the box is over a clean Debian of the release that the package is for, with
its systemd, and lmd is that package: `make test-releases`.
"""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
SDBOX = Path(__file__).parent / "sdbox"
PYTHON = Path("/usr/bin/python3")
SETTINGS = """\
[defaults.load]
threads = 1
"""
CLEAN = """\
systemctl stop lmd.socket lmd.service
systemctl disable --quiet lmd.socket lmd.service
systemctl reset-failed lmd.socket lmd.service
rm -rf /run/systemd/system/lmd.* /etc/lmd/presets.d/*.toml
systemctl daemon-reload
cat >/etc/lmd/lmd.toml
"""
FORGET = "rm -rf /etc/lmd /{etc,usr/lib}/systemd/system/lmd.* /var/{lib,cache}/lmd /etc/credstore/lmd.*"
"""An lmd that this machine itself may have is none of the box's."""
PACKAGE = os.environ.get("LMD_BOX_PACKAGE")
RELEASES = {"deb12": "bookworm", "deb13": "trixie"}
"""What a package's name says of the Debian that it is for."""
PRESET = """\
model = "tiny-chat"
[sampling]
temperature = 0
"""


def why_not() -> str:
    """What this machine lacks for a box; "" when nothing."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    for program in ("systemd-nspawn", "nsenter", "unshare", "curl"):
        if shutil.which(program) is None:
            return f"{program} is not installed (apt install systemd-container curl)"
    if "overlay" not in Path("/proc/filesystems").read_text():
        return "the kernel has no overlayfs"
    if "cgroup2" not in Path("/proc/mounts").read_text():
        return "there is no cgroup v2 to boot a systemd in"
    check = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"
    if not PYTHON.exists() or subprocess.run([PYTHON, "-c", check], capture_output=True).returncode:
        return f"{PYTHON} has no venv, or is older than 3.11 (apt install python3-venv)"
    return ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = [item for item in items if Path(__file__).parent in item.path.parents]
    reason = why_not() if here else ""
    for item in here:
        # The first run makes an environment, which may compile llama.cpp.
        item.add_marker(pytest.mark.timeout(1800))
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def eventually(condition: Callable[[], Any], seconds: float = 30) -> Any:
    """What ``condition`` returns once it is true; polls the outside world, which tells no events. Fails in the end."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not true after {seconds:g} s"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Box:
    name: str
    directory: Path

    def popen(self, *command: str, **how: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self._inside(command), text=True, stdout=subprocess.PIPE, **how)

    def start(self, *command: str) -> tuple[subprocess.Popen[str], str]:
        """``command`` and its process id in the box, where alone it can be ended."""
        process = self.popen("bash", "-c", 'echo $$; exec "$@"', "-", *command)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    def run(self, *command: str, input: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self._inside(command), text=True, capture_output=True, input=input, timeout=120)

    def __call__(self, *command: str, input: str | None = None) -> str:
        """Its standard output. AssertionError with all that it said when it fails."""
        done = self.run(*command, input=input)
        if done.returncode:
            journal = self.run("journalctl", "--no-pager", "-n", "20").stdout if command[0] == "systemctl" else ""
            raise AssertionError(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}{journal}")
        return done.stdout

    def show(self, name: str, unit: str = "lmd") -> str:
        return self("systemctl", "show", "--value", "-p", name, unit).strip()

    def journal(self, unit: str = "lmd") -> list[dict[str, Any]]:
        """Its records with all their fields, of this boot."""
        self("journalctl", "--sync")
        lines = self("journalctl", "-u", unit, "-o", "json", "--no-pager").splitlines()
        return [json.loads(line) for line in lines]

    def said(self, text: str, unit: str = "lmd") -> bool:
        return any(text in str(record.get("MESSAGE")) for record in self.journal(unit))

    def get(self, path: str) -> Any:
        return json.loads(self("curl", "-sS", f"http://127.0.0.1:1234{path}"))

    def ask(self, model: str = "tiny-chat", request_id: str = "") -> str:
        """The answer of one completion."""
        body = {"model": model, "messages": [{"role": "user", "content": "Count to 5."}], "temperature": 0}
        url = "http://127.0.0.1:1234/v1/chat/completions"
        json_type = "Content-Type: application/json"
        answer = self("curl", "-sS", url, "-H", json_type, "-H", f"X-Request-Id: {request_id}", "-d", json.dumps(body))
        assert '"choices"' in answer, answer
        return str(json.loads(answer)["choices"][0]["message"]["content"])

    def stream(self, max_tokens: int) -> subprocess.Popen[str]:
        """A streamed answer of that many tokens, which has begun."""
        body = {"model": "tiny-chat", "prompt": "Count", "stream": True, "ignore_eos": True, "max_tokens": max_tokens}
        url = "http://127.0.0.1:1234/v1/completions"
        stream = self.popen("curl", "-sS", "-N", url, "-H", "Content-Type: application/json", "-d", json.dumps(body))
        assert stream.stdout is not None
        assert any(line.startswith("data: ") for line in stream.stdout)  # reads up to the first
        return stream

    def write(self, path: str, text: str) -> None:
        self("bash", "-c", 'mkdir -p "$(dirname "$1")" && cat >"$1"', "-", path, input=text)

    def drop_in(self, text: str, unit: str = "lmd.service") -> None:
        self.write(f"/run/systemd/system/{unit}.d/test.conf", text)
        self("systemctl", "daemon-reload")

    def workers(self) -> list[int]:
        """Of the service: one for each instance, and the standby."""
        main = self.show("MainPID")
        return [int(pid) for pid in self("cat", f"/proc/{main}/task/{main}/children").split()]

    def alive(self, pid: int) -> bool:
        state = self.run("ps", "-o", "stat=", "-p", str(pid)).stdout.strip()
        return bool(state) and not state.startswith("Z")

    def _inside(self, command: tuple[str, ...]) -> list[str]:
        return ["bash", str(SDBOX), "in", self.name, *command]


def clean_root(package: Path) -> Path:
    """A clean Debian of the release that ``package`` is for; made where it is not in the cache."""
    release = next(name for mark, name in RELEASES.items() if mark in package.name)
    command = ["bash", REPOSITORY / "packaging/deb/root.sh", release]
    made = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    assert made.returncode == 0, f"no clean {release}: its log is above"
    return Path(made.stdout.strip())


def apt(box: Box, *arguments: str) -> None:
    """apt as an administrator types it, with nobody there to answer questions."""
    command = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", *arguments]
    process = box.popen(*command, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    # Folders stay where something of the administrator's is in them.
    warnings = [
        line for line in said.splitlines() if "dpkg: warning" in line and "not empty so not removed" not in line
    ]
    assert not warnings, said


@dataclass(frozen=True)
class Installation:
    """How lmd comes into a box, and where it then is."""

    root: Path
    """The box is an overlay of it."""
    environment: Path
    """lmd's virtual environment."""
    units: Path
    """The folder of ``system`` and ``user``."""
    source: Path
    """A wheel, or a Debian package."""

    def into(self, box: Box) -> None:
        """lmd in ``box``, and nothing of it started."""
        if self.source.suffix == ".deb":
            apt(box, "install", f"/source/{self.source.name}")
            box("systemctl", "disable", "--quiet", "--now", "lmd")
            return
        box("bash", "-c", FORGET)
        quiet = ["--quiet", "--disable-pip-version-check", "--root-user-action=ignore"]
        pip = f"{self.environment}/bin/pip"
        box(pip, "install", *quiet, "--no-deps", "--no-index", f"/source/{self.source.name}")
        box("ln", "-s", f"{self.environment}/bin/lmctl", "/usr/local/bin/lmctl")
        box("env", f"PREFIX={self.environment}", "bash", "/src/packaging/install.sh", "files")


def environment() -> Path:
    """A virtual environment on this machine with everything that lmd needs, but lmd."""
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    build = config["build-system"]["requires"]
    wanted = json.dumps([config["project"]["dependencies"], build, PYTHON.resolve().name])
    place = Path("/opt") / f"lmd-test-{hashlib.sha256(wanted.encode()).hexdigest()[:12]}"
    with Path(f"{place}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "complete").exists():
            subprocess.run([PYTHON, "-m", "venv", "--clear", place], check=True)
            quiet = ["--quiet", "--disable-pip-version-check", "--no-input"]
            subprocess.run([place / "bin/pip", "install", *quiet, *build, REPOSITORY], check=True)
            subprocess.run([place / "bin/pip", "uninstall", *quiet, "--yes", "lmd"], check=True)
            (place / "complete").touch()
    return place


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    if PACKAGE:
        package = Path(PACKAGE).resolve(strict=True)
        return Installation(clean_root(package), Path("/usr/lib/lmd"), Path("/usr/lib/systemd"), package)
    place = environment()
    wheels = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels]
    subprocess.run([place / "bin/pip", "wheel", *options, REPOSITORY], check=True)
    return Installation(Path("/"), place, Path("/usr/local/lib/systemd"), next(wheels.glob("*.whl")))


def left_over() -> list[str]:
    """Boxes of test runs that were killed."""
    roots = (Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup"))
    names = [place.name.removeprefix("sdbox-") for root in roots for place in root.glob("sdbox-lmd-*-*")]
    return [name for name in names if not Path("/proc", name.split("-")[1]).exists()]


@pytest.fixture(scope="session")
def boot(installation: Installation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Box]]:
    """``boot()``: a box of one's own with lmd installed and two models, and nothing started."""
    booted: list[Box] = []
    base = tmp_path_factory.mktemp("box")
    environ = {**os.environ, "SDBOX_DIR": str(base), "LOWER": str(installation.root)}
    for left in left_over():
        subprocess.run(["bash", SDBOX, "down", left], env=environ)

    def start() -> Box:
        box = Box(f"lmd-{os.getpid()}-{len(booted)}", base)
        flags = ["--private-network", "--system-call-filter=bpf", f"--bind-ro={REPOSITORY}:/src"]
        booted.append(box)
        up = subprocess.run(
            ["bash", SDBOX, "up", box.name, *flags, f"--bind-ro={installation.source.parent}:/source"],
            env=environ,
            capture_output=True,
            text=True,
        )
        assert up.stdout.strip() == "running", f"the box is not well: {up.stdout}{up.stderr}"
        installation.into(box)
        for model in ("tiny-chat", "tiny-draft"):
            owned = ["-o", "lmd", "-g", "lmd", "-m", "640"]
            box("install", *owned, f"/src/tests/models/{model}.gguf", "/var/lib/lmd/models/")
        box.write("/etc/lmd/lmd.toml", SETTINGS)
        return box

    yield start
    for box in booted:
        subprocess.run(["bash", SDBOX, "down", box.name], env=environ, check=True)


@pytest.fixture(scope="session")
def shared_box(boot: Callable[[], Box]) -> Box:
    box = boot()
    box("useradd", "--create-home", "--groups", "lmd", "member")
    box("useradd", "--create-home", "stranger")
    return box


@pytest.fixture
def box(shared_box: Box) -> Iterator[Box]:
    """A box where nothing of lmd runs, and that no other test has changed for good."""
    yield shared_box
    shared_box("bash", "-c", CLEAN, input=SETTINGS)
