"""``lmctl preset ls|show|check`` and ``lmctl reload``."""

import json
import sys
from urllib.parse import quote

import typer

from lmctl.options import Common
from lmctl.output import Column, note, print_json, print_problems, print_table, problem_text, say
from lmctl.text import one_line, printable
from lmd.protocol import PresetDetail, PresetRow, ProblemRow, ReloadResult

COLUMNS = (
    Column("PRESET"),
    Column("MODEL", keep=8),
    Column("STATE", keep=7),
    Column("ALIASES", keep=5),
    Column("LOADED", keep=6),
    Column("DESCRIPTION", keep=4),
)
EFFECTIVE = (Column("SETTING", folds=False), Column("VALUE"), Column("FROM"))


def list_presets(common: Common) -> None:
    presets = common.client().get("/presets", list[PresetRow])
    if common.json:
        print_json(presets)
        return
    if presets:
        print_table(COLUMNS, [cells(preset) for preset in presets])
    else:
        note("No presets. 'lmctl status' tells the configuration; presets are TOML files in [paths] presets.")
    print_problems([problem for preset in presets for problem in preset.problems])


def cells(preset: PresetRow) -> list[str]:
    wrong = "broken" if not preset.serving else "edit refused"
    return [
        preset.name,
        preset.model,
        wrong if preset.problems else "ok",
        ", ".join(preset.aliases),
        ", ".join(preset.loaded),
        preset.description,
    ]


def show_preset(common: Common, name: str, *, effective: bool) -> None:
    route = f"/presets/{quote(name, safe='')}" + ("?effective=1" if effective else "")
    detail = common.client().get(route, PresetDetail)
    if common.json:
        print_json(detail)
    elif effective:
        rows = [[key, shown(value), detail.origin.get(key, "")] for key, value in flat(detail.effective)]
        print_table(EFFECTIVE, rows)
    else:
        note(detail.file)
        sys.stdout.write(printable(detail.text) if sys.stdout.isatty() else detail.text)
        if not detail.text.endswith("\n"):
            print()


def flat(settings: dict[str, object], above: str = "") -> list[tuple[str, object]]:
    """Nested tables as dotted keys, in their order."""
    rows: list[tuple[str, object]] = []
    for key, value in settings.items():
        rows += flat(value, f"{above}{key}.") if isinstance(value, dict) and value else [(f"{above}{key}", value)]
    return rows


def shown(value: object) -> str:
    """A value as TOML writes it; what is not set is a dash."""
    return "-" if value is None else json.dumps(value, ensure_ascii=False)


def check_presets(common: Common) -> None:
    problems = common.client().post("/presets/check", None, list[ProblemRow])
    if common.json:
        print_json(problems)
    elif problems:
        for problem in problems:
            say(problem_text(problem))
    else:
        print("All presets are good.")
    if problems:
        raise typer.Exit(1)


def reload_config(common: Common) -> None:
    result = common.client().post("/reload", None, ReloadResult)
    if common.json:
        print_json(result)
    else:
        for name in result.changed:
            print(f"changed {one_line(name)}")
        if not result.changed and not result.problems:
            print("Nothing has changed.")
        print_problems(result.problems)
        if result.problems:
            note("What is wrong was not applied; the last good version serves on.")
    if result.problems:
        raise typer.Exit(1)
