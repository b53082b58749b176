"""``lmd``'s flags, through the real command."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from lmd.__main__ import overrides, parser


def lmd(
    *arguments: str, cwd: Path | None = None, environ: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "lmd", *arguments],
        capture_output=True, text=True, timeout=60, cwd=cwd, env={**os.environ, **(environ or {})},
    )  # fmt: skip


def test_flags_name_settings_and_win_over_set() -> None:
    said = parser().parse_args(
        ["-o", "server.port=1", "--set", "models.ttl=10m", "--port", "2", "--models-dir", "/a", "--models-dir", "/b"]
    )
    assert overrides(said) == {"server.port": "2", "models.ttl": "10m", "paths.models": ["/a", "/b"]}


def test_no_flags_override_nothing() -> None:
    assert overrides(parser().parse_args([])) == {}


@pytest.mark.parametrize("text", ["port", "=1"])
def test_set_wants_key_and_value(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["-o", text])
    assert caught.value.code == 2
    assert "KEY=VALUE" in capsys.readouterr().err


def test_version_tells_lmd_llama_cpp_features_and_devices() -> None:
    answer = lmd("--version")
    assert answer.returncode == 0, answer.stderr
    own, runtime, *rest = answer.stdout.splitlines()
    assert own == f"lmd {importlib.metadata.version('lmd')}"
    assert re.fullmatch(r"llama-cpp-python \S+, llama\.cpp \S+ \(([0-9a-f]{7,40}(-dirty)?|unknown commit)\)", runtime)
    assert any(line.startswith("CPU: ") for line in rest)
    assert any(line.startswith("device CPU (cpu): ") for line in rest)


def test_version_as_json_says_the_same() -> None:
    answer = lmd("--version", "--json")
    assert answer.returncode == 0, answer.stderr
    said = json.loads(answer.stdout)
    assert said["lmd"] == importlib.metadata.version("lmd")
    assert said["llama_cpp_python"] == importlib.metadata.version("llama-cpp-python")
    assert "CPU" in said["features"]
    assert [one["name"] for one in said["devices"] if one["kind"] == "cpu"] == ["CPU"]


def test_version_with_a_llama_cpp_that_cannot_be_loaded_tells_lmds_own_and_fails(tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('no libllama.so here')\n")
    answer = lmd("--version", environ={"PYTHONPATH": str(tmp_path)})
    assert answer.returncode == 1
    assert answer.stdout == f"lmd {importlib.metadata.version('lmd')}\n"
    assert "no libllama.so here" in answer.stderr and "Traceback" not in answer.stderr


def test_json_without_version_is_refused() -> None:
    answer = lmd("--json")
    assert (answer.returncode, answer.stdout) == (2, "")
    assert "--version" in answer.stderr


def test_help_imports_nothing_heavy() -> None:
    probe = "import sys; from lmd.__main__ import parser; parser(); print('aiohttp' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"


def test_a_daemon_begins_without_what_few_need() -> None:
    heavy = {"numpy", "llguidance", "huggingface_hub"}  # each megabytes, in memory for good
    probe = f"import sys, lmd.daemon, lmd.chat.dialogue; print({heavy} & sys.modules.keys())"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def write(directory: Path, settings: str = "", preset: str = 'model = "tiny"\n') -> Path:
    presets = directory / "presets"
    presets.mkdir()
    (presets / "one.toml").write_text(preset)
    config = directory / "lmd.toml"
    config.write_text(f'{settings}\n[paths]\nmodels = ["{directory}"]\npresets = "{presets}"\n')
    return config


def test_check_is_content_with_right_files(tmp_path: Path) -> None:
    answer = lmd("--config", str(write(tmp_path)), "--check")
    assert answer.returncode == 0, answer.stderr


def test_check_names_file_line_and_key(tmp_path: Path) -> None:
    config = write(tmp_path, "[server]\nprot = 1", preset='model = "tiny"\n[sampling]\ntemperature = "hot"\n')
    answer = lmd("--config", str(config), "--check")
    assert answer.returncode == 1
    settings, preset = answer.stderr.strip().splitlines()
    assert settings.startswith(f"{config}:2") and "prot" in settings and "port" in settings
    assert preset.startswith(f"{tmp_path}/presets/one.toml:3") and "temperature" in preset


def test_wrong_settings_do_not_start(tmp_path: Path) -> None:
    config = write(tmp_path, "[server]\nport = 123456")
    answer = lmd("--config", str(config))
    assert answer.returncode == 1
    assert f"{config}:2" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_print_config_tells_where_each_setting_is_from(tmp_path: Path) -> None:
    config = write(tmp_path, "[server]\nport = 4321")
    answer = lmd("--config", str(config), "--print-config", "--host", "127.0.0.2")
    assert answer.returncode == 0, answer.stderr
    port = next(line for line in answer.stdout.splitlines() if line.startswith("port"))
    host = next(line for line in answer.stdout.splitlines() if line.startswith("host"))
    assert "4321" in port and f"{config}:2" in port
    assert "127.0.0.2" in host and "flag" in host
