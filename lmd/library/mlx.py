"""MLX models: directories ``<publisher>/<repo>`` with a config.json and safetensors. Listed, but served by no engine.

What config.json says is in transformers' words (``model_type``, ``max_position_embeddings``); mlx-lm adds
``quantization`` with the bits. https://github.com/ml-explore/mlx-lm
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmd.library.files import Broken
from lmd.library.header import Header
from lmd.library.model import Model

_MOST = 4 << 20
"""Bytes of a JSON file that is read."""


def find_mlx(directories: Sequence[Path]) -> tuple[list[Model], list[Broken]]:
    """In the order of the directories, each place once. Blocks; never raises for what is on disk."""
    models: dict[str, Model] = {}
    broken = []
    for directory in directories:
        for config in sorted(directory.glob("*/*/config.json")):
            folder = config.parent
            if folder.name.startswith(".") or folder.parent.name.startswith("."):
                continue
            try:
                weights = sorted(folder.glob("*.safetensors"))
                if not weights:
                    continue  # some other program's directory
                model = _model(folder, config, weights)
                models.setdefault(model.key, model)
            except (OSError, ValueError, RecursionError) as exc:
                broken.append(Broken(folder, f"its configuration cannot be read: {exc}"))
    return list(models.values()), broken


def _model(folder: Path, config: Path, weights: Sequence[Path]) -> Model:
    said = _read(config)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read(index).get("weight_map", {})
        if not isinstance(weight_map, dict):
            raise ValueError(f"the weight_map in {index.name} is no object")
        named = {name for name in weight_map.values() if isinstance(name, str)}
        if missing := sorted(named - {path.name for path in weights}):
            raise ValueError(f"{missing[0]} is missing")
    text = said.get("text_config")
    inner = text if isinstance(text, dict) else said
    architecture = str(said.get("model_type") or "")
    values: dict[str, Any] = {"general.architecture": architecture}
    if isinstance(length := inner.get("max_position_embeddings"), int):
        values[f"{architecture}.context_length"] = length
    if template := _template(folder):
        values["tokenizer.chat_template"] = template
    quantization = said.get("quantization") or said.get("quantization_config")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".part")
    size = sum(path.stat().st_size for path in files)
    n_bytes = sum(path.stat().st_size for path in weights)
    return Model(
        key=f"{folder.parent.name}/{folder.name}",
        publisher=folder.parent.name,
        repo=folder.name,
        stem=folder.name,
        path=folder,
        parts=tuple(files),
        mmproj=None,
        header=Header(
            version=0,
            size=size,
            data_offset=0,
            n_tensors=0,
            n_params=0,
            tensor_bytes=n_bytes,
            block_bytes=(),
            quantization=f"{bits}bit" if isinstance(bits, int) else str(said.get("torch_dtype") or ""),
            has_output=False,
            values=values,
            lengths={},
        ),
        size=size,
        mtime=max(path.stat().st_mtime for path in files),
        format="mlx",
    )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():  # opening a pipe would wait for ever
        raise ValueError(f"{file.name} is not a regular file")
    if file.stat().st_size > _MOST:
        raise ValueError(f"{file.name} is larger than {_MOST >> 20} MiB")
    read = json.loads(file.read_bytes())
    if not isinstance(read, dict):
        raise ValueError(f"{file.name} holds no object")
    return read


def _template(folder: Path) -> str:
    jinja = folder / "chat_template.jinja"
    if jinja.is_file() and jinja.stat().st_size < _MOST:
        return jinja.read_text("utf-8", "replace")
    tokenizer = folder / "tokenizer_config.json"
    said = _read(tokenizer).get("chat_template") if tokenizer.exists() else None
    return said if isinstance(said, str) else ""
