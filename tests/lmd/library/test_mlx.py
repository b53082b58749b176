"""MLX directories, as the hub's repositories have them."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lmd.library.catalog import Catalog


def put_mlx(root: Path, **config: object) -> Path:
    folder = root / "mlx-community" / "Tiny-4bit"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3", **config}))
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


def test_an_mlx_directory_is_a_model_beside_the_others(tmp_path: Path, put: Callable[..., Path]) -> None:
    put("owner/repo/a.gguf")
    folder = put_mlx(tmp_path / "models", max_position_embeddings=4096, quantization={"bits": 4, "group_size": 64})
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    catalog = Catalog([tmp_path / "models"])
    assert catalog.refresh().added == ("mlx-community/Tiny-4bit", "owner/repo")
    model = catalog.find("tiny-4BIT")
    assert (model.format, model.header.architecture, model.header.quantization) == ("mlx", "qwen3", "4bit")
    assert (model.context_length, model.header.chat_template) == (4096, "{{ messages }}")
    assert catalog.find("owner/repo").format == "gguf"
    assert not catalog.refresh()


def test_a_missing_shard_is_told(tmp_path: Path) -> None:
    folder = put_mlx(tmp_path)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    catalog = Catalog([tmp_path])
    catalog.refresh()
    assert not catalog.models
    assert "model-2.safetensors is missing" in catalog.broken[0].reason


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "[" * 100_000, "\x00"])
def test_a_damaged_configuration_is_told_and_breaks_nothing(tmp_path: Path, text: str) -> None:
    (put_mlx(tmp_path) / "config.json").write_text(text)
    catalog = Catalog([tmp_path])
    catalog.refresh()
    assert not catalog.models
    assert len(catalog.broken) == 1


@pytest.mark.parametrize("text", ['{"weight_map": []}', '{"weight_map": "x"}', "[]", '{"weight_map": null}'])
def test_a_damaged_index_is_told_and_breaks_nothing(tmp_path: Path, text: str) -> None:
    (put_mlx(tmp_path) / "model.safetensors.index.json").write_text(text)
    catalog = Catalog([tmp_path])
    catalog.refresh()
    assert not catalog.models
    assert len(catalog.broken) == 1


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "tokenizer_config.json"])
def test_a_pipe_in_the_place_of_a_file_is_told_at_once(tmp_path: Path, name: str) -> None:
    path = put_mlx(tmp_path) / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    catalog = Catalog([tmp_path])
    catalog.refresh()
    assert "not a regular file" in catalog.broken[0].reason


def test_a_configuration_without_weights_is_somebody_elses(tmp_path: Path) -> None:
    (put_mlx(tmp_path) / "model.safetensors").unlink()
    catalog = Catalog([tmp_path])
    assert not catalog.refresh()
