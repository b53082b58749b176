"""Rows of the control socket's lists, made from what config, library and pool hold."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lmd.config.store import alias_clashes
from lmd.errors import LmdError, Problem
from lmd.library.resolve import model_of
from lmd.protocol import ModelRow, PresetRow, ProblemRow

if TYPE_CHECKING:
    from lmd.api.services import Services
    from lmd.config.snapshot import Snapshot
    from lmd.library.catalog import Catalog, Model


def problem_rows(problems: Iterable[Problem]) -> list[ProblemRow]:
    return [ProblemRow(one.file, one.message, one.key, one.line, one.column) for one in problems]


def model_files(services: Services) -> dict[str, Path]:
    """Keys of the catalog's models, and their (first) files."""
    return {key: model.path for key, model in services.catalog.models.items()}


def current_problems(services: Services) -> tuple[Problem, ...]:
    """All that is wrong with the operator's files now, aliases that hide a model among it."""
    snapshot = services.config.snapshot
    return (*snapshot.problems, *alias_clashes(snapshot, model_files(services)))


def model_rows(services: Services) -> list[ModelRow]:
    """Models by key, then files that cannot be served."""
    loaded: dict[str, list[str]] = {}
    for row in services.pool.rows():
        loaded.setdefault(row.model, []).append(row.id)
    presets: dict[str, list[str]] = {}
    for preset in services.config.snapshot.presets.values():
        try:
            presets.setdefault(model_of(preset, services.catalog).key, []).append(preset.name)
        except LmdError:
            continue  # its model is not there: `preset ls` says so
    rows = [
        _model_row(model, loaded.get(key, []), presets.get(key, [])) for key, model in services.catalog.models.items()
    ]
    rows += [
        ModelRow(
            key=broken.path.name,
            path=str(broken.path),
            type="",
            architecture="",
            quantization="",
            n_params=0,
            size=broken.size,
            context_length=0,
            error=broken.reason,
        )
        for broken in services.catalog.broken
    ]
    return rows


def _model_row(model: Model, loaded: list[str], presets: list[str]) -> ModelRow:
    header = model.header
    return ModelRow(
        key=model.key,
        path=str(model.path),
        type=model.type,
        architecture=header.architecture,
        quantization=header.quantization,
        n_params=header.n_params,
        size=model.size,
        context_length=model.context_length,
        parts=len(model.parts),
        mmproj=str(model.mmproj) if model.mmproj else None,
        has_template="tokenizer.chat_template" in header.values,
        loaded=loaded,
        presets=presets,
        format=model.format,
        publisher=model.publisher,
    )


def missing_models(catalog: Catalog, snapshot: Snapshot) -> list[Problem]:
    """Of presets that could be served if their models could. Blocks: models outside the directories are looked at."""
    missing = []
    for preset in snapshot.presets.values():
        try:
            model_of(preset, catalog)
        except LmdError as error:
            missing.append(Problem(str(preset.file), error.message, key="model"))
    return missing


async def preset_rows(services: Services) -> list[PresetRow]:
    """Served presets (those whose model is not there are not), then files that serve nothing because they are wrong."""
    snapshot = services.config.snapshot
    missing = await asyncio.to_thread(missing_models, services.catalog, snapshot)
    without = {problem.file for problem in missing}
    wrong: dict[str, list[Problem]] = {}
    for problem in (*current_problems(services), *missing):
        wrong.setdefault(problem.file, []).append(problem)
    loaded = services.pool.names()
    rows = []
    for preset in snapshot.presets.values():
        file = str(preset.file)
        rows.append(
            PresetRow(
                name=preset.name,
                file=file,
                model=preset.model,
                description=preset.description,
                aliases=list(preset.aliases),
                loaded=loaded.get(preset.name, []),
                problems=problem_rows(wrong.pop(file, ())),
                serving=file not in without,
            )
        )
    directory = snapshot.settings.paths.presets
    for file, problems in wrong.items():
        path = type(directory)(file)
        if path.parent == directory and path.suffix == ".toml":
            rows.append(PresetRow(path.stem, file, "", problems=problem_rows(problems), serving=False))
    return rows
