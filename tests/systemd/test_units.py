"""The units as files: what systemd says of them without running them."""

import re

from tests.systemd.conftest import Box, Installation

MOST_EXPOSED = 1.5


def test_systemd_finds_nothing_wrong_with_the_units(box: Box, installation: Installation) -> None:
    units = [f"{installation.units}/system/lmd.{kind}" for kind in ("service", "socket", "slice")]
    done = box.run("systemd-analyze", "verify", *units)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_nothing_wrong_with_the_users_unit(box: Box, installation: Installation) -> None:
    bin = installation.environment / "bin"
    box("mkdir", "-p", "/root/.local/bin")
    box("ln", "-sf", f"{bin}/lmd", f"{bin}/lmctl", "/root/.local/bin/")
    unit = f"{installation.units}/user/lmd.service"
    done = box.run("env", "XDG_RUNTIME_DIR=/run", "systemd-analyze", "verify", "--user", unit)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_exposes_little(box: Box) -> None:
    report = box("systemd-analyze", "security", "--no-pager", "lmd.service")
    overall = re.search(r"Overall exposure level for lmd.service: ([\d.]+)", report)
    assert overall is not None
    assert float(overall[1]) <= MOST_EXPOSED
