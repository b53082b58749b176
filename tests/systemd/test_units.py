"""The units as files: what systemd says of them without running them."""

import re
from pathlib import Path

from tests.systemd.conftest import Box

MOST_EXPOSED = 1.5


def test_systemd_finds_nothing_wrong_with_the_units(box: Box) -> None:
    units = [f"/usr/local/lib/systemd/system/lmd.{kind}" for kind in ("service", "socket", "slice")]
    done = box.run("systemd-analyze", "verify", *units)
    assert (done.returncode, done.stderr) == (0, "")


def test_systemd_finds_nothing_wrong_with_the_users_unit(box: Box, environment: Path) -> None:
    box("mkdir", "-p", "/root/.local/bin")
    box("ln", "-sf", f"{environment}/bin/lmd", f"{environment}/bin/lmctl", "/root/.local/bin/")
    done = box.run(
        "env", "XDG_RUNTIME_DIR=/run", "systemd-analyze", "verify", "--user", "/usr/local/lib/systemd/user/lmd.service"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_service_exposes_little(box: Box) -> None:
    report = box("systemd-analyze", "security", "--no-pager", "lmd.service")
    overall = re.search(r"Overall exposure level for lmd.service: ([\d.]+)", report)
    assert overall is not None
    assert float(overall[1]) <= MOST_EXPOSED
