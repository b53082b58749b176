import re

import pytest

from lmctl.bars import Bars
from lmd.protocol import DownloadRow

NAME = "bartowski/DeepSeek-R1-0528-Qwen3-8B-GGUF"


def row(id: str = "d1", **more: object) -> DownloadRow:
    told = {"state": "downloading", "size": 400_000_000, "received": 200_000_000, "rate": 3_000_000.0, "eta": 70.0}
    return DownloadRow(id=id, model=NAME, quantization="Q4_K_M", **(told | more))  # type: ignore[arg-type]  # by name


def drawn(
    columns: int, rows: list[DownloadRow], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> list[str]:
    for name, value in (("FORCE_COLOR", "1"), ("COLUMNS", str(columns)), ("TERM", "xterm-256color")):
        monkeypatch.setenv(name, value)
    with Bars() as show:
        for one in rows:
            show(one)
    return [line.strip() for line in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err).splitlines()]


@pytest.mark.parametrize("columns", [60, 160])
def test_a_long_name_leaves_room_for_the_rate_and_the_time_left(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = drawn(columns, [row()], monkeypatch, capsys)
    assert f"{NAME}@q4_k_m" in lines
    assert any(line.endswith("50% 2.86 MiB/s, 1m 10s left") for line in lines)


def test_what_it_waits_for_is_told_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    note = "the hub asks for a pause (status 429) and gets one"
    lines = drawn(60, [row(state="waiting", note=note, retry_in=12.0)], monkeypatch, capsys)
    assert f"{note}; next try in 12s" in " ".join(line.lstrip("━╸╺ 0123456789%") for line in lines if line)


def test_each_download_has_its_own_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = drawn(80, [row(), row("d2", received=100_000_000)], monkeypatch, capsys)
    assert lines.count(f"{NAME}@q4_k_m") >= 2
    assert any("50%" in line for line in lines) and any("25%" in line for line in lines)
