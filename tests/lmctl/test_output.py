import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from lmctl.output import Column, layout, table, whole
from lmd.protocol import Done, InstanceRow

COLUMNS = (Column("ID"), Column("STATE"), Column("PID", keep=0), Column("TTL", keep=5, align="right"))
ROW = ["a-model-of-a-long-name", "ready", "4711", "4m 10s"]


@pytest.mark.parametrize(
    ("width", "titles"),
    [(80, "ID STATE PID TTL"), (40, "ID STATE TTL"), (32, "ID STATE"), (10, "ID STATE")],
)
def test_columns_leave_in_their_order_as_the_terminal_narrows(width: int, titles: str) -> None:
    assert [COLUMNS[i].title for i in layout(COLUMNS, [ROW], width)] == titles.split()


def test_a_column_that_says_nothing_leaves_first_of_all() -> None:
    assert [COLUMNS[i].title for i in layout(COLUMNS, [["a", "ready", "-", ""]], 80)] == ["ID", "STATE"]


@given(st.lists(st.lists(st.text(alphabet="ab模é-"), min_size=4, max_size=4), max_size=4), st.integers(24, 120))
def test_no_line_is_wider_than_the_terminal(rows: list[list[str]], width: int) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, markup=False)
    with console.capture() as captured:
        console.print(table(COLUMNS, rows, width), crop=False)
    assert all(cell_len(line.rstrip()) <= width for line in captured.get().splitlines())
    assert len(captured.get().splitlines()) >= len(rows) + 1


def test_a_name_too_long_is_folded_and_nothing_of_it_is_lost() -> None:
    name = "publisher/a-repository-with-a-very-long-name@q4_k_m"
    console = Console(width=40, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(table(COLUMNS, [[name, "ready", "1", "5m"]], 40))
    lines = captured.get().splitlines()
    start = lines[0].index("STATE")
    assert "".join(line[:start].strip() for line in lines[1:]) == name


@pytest.mark.parametrize("width", [60, 20])
def test_a_column_that_must_not_fold_stays_whole(width: int) -> None:
    columns = (Column("SETTING", folds=False), Column("VALUE"), Column("FROM"))
    widths = layout(columns, [["load.rope_frequency_scale_factor", "x" * 60, "/etc/lmd/presets.d/coder.toml"]], width)
    assert widths[0] == len("load.rope_frequency_scale_factor")
    assert all(widths[i] < 60 for i in (1, 2))


def test_names_are_told_as_they_are_and_not_as_markup() -> None:
    console = Console(width=80, force_terminal=True)
    with console.capture() as captured:
        console.print(table(COLUMNS, [["[bold]x[/bold]", "ready", "1", ":smile:"]], 80))
    plain = re.sub(r"\x1b\[[0-9;]*m", "", captured.get())
    assert "[bold]x[/bold]" in plain
    assert ":smile:" in plain


def test_json_has_every_field_also_those_at_their_defaults() -> None:
    told = whole(Done(instance=InstanceRow(id="a", model="m", state="ready")))
    assert (told["type"], told["already"], told["instance"]["expires_in"]) == ("done", False, None)
