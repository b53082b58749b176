"""`make demo` as a new user runs it, after the environment is built."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).with_name("demo.sh")


@pytest.mark.slow
def test_the_demo_runs_with_another_program_on_its_port(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            other.bind(("127.0.0.1", 1234))
            other.listen()
        except OSError:
            pass  # somebody else is the other program
        ran = subprocess.run(
            ["bash", DEMO, Path(sys.executable).parent],
            capture_output=True,
            text=True,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Port 1234 is in use by another program" in ran.stdout
    assert "data: [DONE]" in ran.stdout
    assert "Once upon a time, Emma" in ran.stdout
    assert ran.stdout.endswith("left nothing behind.\n")
    assert list(tmp_path.iterdir()) == []
