"""Models and what runs of them, as v0 and v1 describe them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast

from lmd.api.abilities import Abilities, abilities_of, params_string
from lmd.api.lmstudio.shapes import (
    Capabilities,
    Config,
    Effort,
    LoadedInstance,
    V0Model,
    V1Model,
)
from lmd.config.preset import ChatSettings
from lmd.errors import ModelNotFound
from lmd.library.resolve import listing, resolve

if TYPE_CHECKING:
    from lmd.api.services import Services
    from lmd.library.catalog import Model
    from lmd.protocol import InstanceRow

_LOADED = {"ready", "draining"}


def type_of(model: Model) -> Literal["llm", "embedding"]:
    return "embedding" if model.type == "embeddings" else "llm"


def loaded_rows(services: Services, name: str, model: Model) -> list[InstanceRow]:
    """What is in memory of the listed ``name``: of a model all its instances, of a preset the one of its name."""
    is_model = name == model.key
    rows = [row for row in services.pool.rows() if row.state in _LOADED]
    return [row for row in rows if (row.model == model.key if is_model else row.id == name)]


# ── v0 ────────────────────────────────────────────────────────────────────────────────────────


async def v0_models(services: Services) -> list[V0Model]:
    """Presets and models, then instances that were given a name of their own."""
    snapshot = services.config.snapshot
    found = [
        await _v0_model(services, one.name, one.model, one.preset.chat if one.preset else ChatSettings())
        for one in listing(snapshot, services.catalog)
    ]
    names = {one["id"] for one in found}
    others = [row for row in services.pool.rows() if row.id not in names]
    return found + [
        await _v0_model(services, row.id, model, ChatSettings())
        for row in others
        if (model := services.catalog.models.get(row.model)) is not None
    ]


async def v0_model(services: Services, name: str) -> V0Model:
    """The model of any name that a request may use; the answer's id is the canonical one. ModelNotFound."""
    try:
        target = resolve(name, services.config.snapshot, services.catalog)
        return await _v0_model(services, target.name, target.model, target.chat)
    except ModelNotFound:
        row = next((row for row in services.pool.rows() if row.id == name), None)
        model = services.catalog.models.get(row.model) if row is not None else None
        if model is None:
            raise
        return await _v0_model(services, name, model, ChatSettings())


async def _v0_model(services: Services, name: str, model: Model, chat: ChatSettings) -> V0Model:
    abilities = await abilities_of(model, chat)
    rows = loaded_rows(services, name, model)
    described: V0Model = {
        "id": name,
        "object": "model",
        "type": model.type,
        "publisher": model.publisher,
        "arch": model.header.architecture,
        "compatibility_type": model.format,
        "quantization": model.header.quantization,
        "state": "loaded" if rows else "not-loaded",
        "max_context_length": model.context_length,
        "capabilities": ["tool_use"] if abilities.tool_use else [],
    }
    if rows:
        described["loaded_context_length"] = rows[0].context_length
    return described


# ── v1 ────────────────────────────────────────────────────────────────────────────────────────


async def v1_models(services: Services) -> list[V1Model]:
    return [
        _v1_model(
            one.name,
            one.model,
            await abilities_of(one.model, one.preset.chat if one.preset else ChatSettings()),
            loaded_rows(services, one.name, one.model),
            one.preset.description if one.preset else "",
        )
        for one in listing(services.config.snapshot, services.catalog)
    ]


def _v1_model(name: str, model: Model, abilities: Abilities, rows: Sequence[InstanceRow], description: str) -> V1Model:
    header = model.header
    described: V1Model = {
        "type": type_of(model),
        "publisher": model.publisher,
        "key": name,
        "display_name": (header.name or model.stem) if name == model.key else name,
        "quantization": {
            "name": header.quantization or None,
            "bits_per_weight": round(header.bits_per_weight, 2) or None,
        },
        "size_bytes": model.size,
        "params_string": header.text("general.size_label") or params_string(header.n_params),
        "loaded_instances": [_instance(row, model) for row in rows],
        "max_context_length": model.context_length,
        "format": model.format,
    }
    if described["type"] == "llm":
        capabilities: Capabilities = {
            "vision": model.type == "vlm",
            "trained_for_tool_use": abilities.tool_use,
        }
        if abilities.reasoning is not None:
            options = cast("list[Effort]", list(abilities.reasoning.options))
            capabilities["reasoning"] = {
                "allowed_options": options,
                "default": cast("Effort", abilities.reasoning.default),
            }
        described["architecture"] = header.architecture or None
        described["capabilities"] = capabilities
        described["description"] = description or None
    return described


def _instance(row: InstanceRow, model: Model) -> LoadedInstance:
    return {"id": row.id, "config": config_of(row, model)}


def config_of(row: InstanceRow, model: Model) -> Config:
    """What an instance was really loaded with."""
    config: Config = {"context_length": row.context_length}
    if type_of(model) == "llm":
        config["eval_batch_size"] = row.batch
        config["parallel"] = row.parallel
        config["flash_attention"] = row.flash_attention
        if model.header.expert_used_count:
            config["num_experts"] = model.header.expert_used_count
        config["offload_kv_cache_to_gpu"] = row.gpu_layers > 0
    return config
