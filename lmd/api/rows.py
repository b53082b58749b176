"""Rows of the control socket's lists, made from what config, library and pool hold."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from lmd.errors import LmdError, Problem
from lmd.protocol import ModelRow, PresetRow, ProblemRow

if TYPE_CHECKING:
    from lmd.api.services import Services
    from lmd.library.catalog import Model


def problem_rows(problems: Iterable[Problem]) -> list[ProblemRow]:
    return [ProblemRow(one.file, one.message, one.key, one.line, one.column) for one in problems]


def model_rows(services: Services) -> list[ModelRow]:
    """Models by key, then files that cannot be served."""
    loaded: dict[str, list[str]] = {}
    for row in services.pool.rows():
        loaded.setdefault(row.model, []).append(row.id)
    presets: dict[str, list[str]] = {}
    for preset in services.config.snapshot.presets.values():
        try:
            presets.setdefault(services.catalog.find(preset.model).key, []).append(preset.name)
        except LmdError:
            continue  # it names no model of the catalog: `preset ls` says so
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
    )


def preset_rows(services: Services) -> list[PresetRow]:
    """Served presets, then files that serve nothing because they are wrong."""
    snapshot = services.config.snapshot
    wrong: dict[str, list[Problem]] = {}
    for problem in snapshot.problems:
        wrong.setdefault(problem.file, []).append(problem)
    loaded = {row.id for row in services.pool.rows()}
    rows = [
        PresetRow(
            name=preset.name,
            file=str(preset.file),
            model=preset.model,
            description=preset.description,
            aliases=list(preset.aliases),
            loaded=[preset.name] if preset.name in loaded else [],
            problems=problem_rows(wrong.pop(str(preset.file), ())),
        )
        for preset in snapshot.presets.values()
    ]
    directory = snapshot.settings.paths.presets
    for file, problems in wrong.items():
        path = type(directory)(file)
        if path.parent == directory and path.suffix == ".toml":
            rows.append(PresetRow(path.stem, file, "", problems=problem_rows(problems), serving=False))
    return rows
