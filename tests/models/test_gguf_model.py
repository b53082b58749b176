"""What is written is what llama.cpp reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from tests.models.gguf_model import Shape, Vocabulary, encode, tensor_shapes, write_model
from tests.models.metadata import Field, read_metadata

TINY_CHAT = Path(__file__).with_name("tiny-chat.gguf")
SHAPE = Shape(architecture="llama", layers=2, width=64, heads=4, kv_heads=2, feed_forward=96)


def test_a_vocabulary_read_and_written_is_the_same_vocabulary(tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_gguf(TINY_CHAT)
    copy = tmp_path / "copy.gguf"
    write_model(copy, name="copy", shape=SHAPE, vocabulary=vocabulary, weights=lambda _, shape: np.zeros(shape))
    assert Vocabulary.from_gguf(copy) == vocabulary
    assert vocabulary.n_tokens == 1024


def test_metadata_tells_the_shape(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shape = replace(SHAPE, architecture="qwen2", n_ctx_train=1234)
    write_model(
        path, name="n", shape=shape, vocabulary=Vocabulary.from_gguf(TINY_CHAT), weights=lambda _, shape: np.ones(shape)
    )
    metadata = read_metadata(path)
    assert metadata["general.architecture"] == Field.text("qwen2")
    assert metadata["qwen2.context_length"] == Field.uint32(1234)
    assert metadata["qwen2.attention.head_count_kv"] == Field.uint32(2)


def test_untied_models_have_an_output_matrix_and_qwen2_has_biases() -> None:
    tied, untied = tensor_shapes(SHAPE, 10), tensor_shapes(replace(SHAPE, tied=False), 10)
    assert set(untied) - set(tied) == {"output.weight"}
    biases = set(tensor_shapes(replace(SHAPE, architecture="qwen2"), 10)) - set(tied)
    assert biases == {f"blk.{layer}.attn_{part}.bias" for layer in (0, 1) for part in "qkv"}


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q4_0", "F16"])
def test_encoding_a_large_matrix_piecewise_equals_encoding_it_at_once(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.models.gguf_model._QUANTIZED_AT_ONCE", 96)
    values = np.random.default_rng(0).standard_normal((7, 64), np.float32)
    quantization = GGMLQuantizationType[kind]
    assert np.array_equal(encode(values, quantization), quants.quantize(values, quantization))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"architecture": "gpt2"}, "architecture 'gpt2' cannot be written"),
        ({"heads": 3}, "must be an even multiple"),
        ({"kv_heads": 3}, "cannot share 3 KV heads"),
        ({"layers": 0}, "at least 1"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, object], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(SHAPE, **change)  # type: ignore[arg-type]


def test_rows_that_do_not_fill_blocks_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    shape = replace(SHAPE, feed_forward=40)
    with pytest.raises(ValueError, match=r"rows of blk\.0\.ffn_down\.weight have 40"):
        write_model(
            tmp_path / "m.gguf",
            name="m",
            shape=shape,
            vocabulary=Vocabulary.from_gguf(TINY_CHAT),
            weights=lambda _, dimensions: np.ones(dimensions),
            quantization="Q8_0",
        )
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_no_partial_one(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="has shape"):
        write_model(
            path,
            name="m",
            shape=SHAPE,
            vocabulary=Vocabulary.from_gguf(TINY_CHAT),
            weights=lambda _, dimensions: np.ones((1, *dimensions)),
        )
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.gguf"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize("length", [0, 10, 40, 3000])
def test_a_truncated_file_is_an_error_that_names_it(length: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(TINY_CHAT.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"cut\.gguf is not a GGUF file"):
        read_metadata(path)
