"""The GPU checks on devices that llama.cpp takes for GPUs, emulated on the CPU: offloading itself, not its speed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import gpu_check, remote_device

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(600)
def test_every_check_holds_on_two_emulated_devices() -> None:
    try:
        remote_device.library()
    except remote_device.Unavailable as exc:
        pytest.skip(str(exc))
    command = [sys.executable, "-m", "tests.bench.gpu_check", "--remote", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok ") == len(gpu_check.CHECKS)


async def test_a_machine_without_a_gpu_is_told_so(capsys: pytest.CaptureFixture[str]) -> None:
    command = (sys.executable, "-m", "lmd.worker.fake")
    assert await gpu_check.check(command) == gpu_check.NO_GPU
    assert "docs/gpu.md" in capsys.readouterr().out


async def test_a_check_that_fails_is_told_and_decides_the_status(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def one_device(command):  # type: ignore[no-untyped-def]
        return (gpu_check.Device(name="CUDA0", description="", kind="gpu", memory_total=1, memory_free=2),)

    monkeypatch.setattr(gpu_check, "find_devices", one_device)
    monkeypatch.setattr(gpu_check, "CHECKS", ("devices_tell_their_memory",))
    assert await gpu_check.check(()) == 1
    assert "FAILED devices tell their memory: CUDA0" in capsys.readouterr().out
