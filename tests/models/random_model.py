"""Models with random weights in real shapes, for benchmarks: tokens per second do not depend on the weights' values.

    python -m tests.models.random_model qwen2-0.5b --quantization Q8_0
    python -m tests.models.random_model --architecture llama --layers 4 --width 256 --heads 8 --kv-heads 2 \\
        --feed-forward 768 --vocabulary llama-bpe --template meta-llama-Llama-3.1-8B-Instruct

prints the file's path. Files lie in the cache (`tests.bench.cache`), named after their arguments, and are made once.
Vocabularies and chat templates come from llama-cpp-python's source distribution (`tests.bench.llama_source`),
or from any GGUF file.
"""

import argparse
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np

from tests.bench.cache import cache_dir
from tests.bench.llama_source import SourceMissing, template_file, vocabulary_file
from tests.models.gguf_model import Array, QuantName, Shape, Vocabulary, WeightSource, write_model

_FORMAT = 1
"""Raise when the same arguments come to mean another file: cached ones are then made anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RandomModel:
    """What to make. Equal values give equal files, byte for byte."""

    shape: Shape
    vocabulary: str
    """``ggml-vocab-NAME.gguf`` of the source distribution, or the path of a GGUF file."""
    template: str = ""
    """``models/templates/NAME.jinja`` of the source distribution, or a path; empty: the vocabulary file's own."""
    quantization: QuantName = "Q8_0"
    name: str = "random"
    seed: int = 0


NAMED: dict[str, RandomModel] = {
    model.name: model
    for model in (
        RandomModel(
            # Computes nearly nothing: for trying a benchmark out, and for what is not compute.
            name="qwen2-tiny",
            shape=Shape(
                architecture="qwen2",
                layers=2,
                width=64,
                heads=4,
                kv_heads=2,
                feed_forward=192,
                n_ctx_train=32768,
                rope_freq_base=1e6,
                rms_epsilon=1e-6,
            ),
            vocabulary="qwen2",
            template="Qwen-Qwen2.5-7B-Instruct",
        ),
        RandomModel(
            name="qwen2-0.5b",
            shape=Shape(
                architecture="qwen2",
                layers=24,
                width=896,
                heads=14,
                kv_heads=2,
                feed_forward=4864,
                n_ctx_train=32768,
                rope_freq_base=1e6,
                rms_epsilon=1e-6,
            ),
            vocabulary="qwen2",
            template="Qwen-Qwen2.5-7B-Instruct",
        ),
        RandomModel(
            name="qwen2-1.5b",
            shape=Shape(
                architecture="qwen2",
                layers=28,
                width=1536,
                heads=12,
                kv_heads=2,
                feed_forward=8960,
                n_ctx_train=32768,
                rope_freq_base=1e6,
                rms_epsilon=1e-6,
            ),
            vocabulary="qwen2",
            template="Qwen-Qwen2.5-7B-Instruct",
        ),
        RandomModel(
            name="llama-1b",
            shape=Shape(
                architecture="llama",
                layers=16,
                width=2048,
                heads=32,
                kv_heads=8,
                feed_forward=8192,
                n_ctx_train=131072,
                rope_freq_base=5e5,
            ),
            vocabulary="llama-bpe",
            template="meta-llama-Llama-3.2-3B-Instruct",
        ),
    )
}


def random_weights(seed: int) -> WeightSource:
    """Weights that keep activations and logits near unit size, however deep the model.

    Matrices are uniform with variance ``1 / n_in``, norms are ones, biases are small. Each tensor has its
    own generator, seeded by its name, so a tensor does not depend on which others a shape has.
    """

    def source(name: str, shape: tuple[int, ...]) -> Array:
        if name.endswith("norm.weight"):
            return np.ones(shape, np.float32)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        half_width = np.sqrt(3 / shape[-1]) if len(shape) > 1 else 0.02
        values = rng.random(shape, np.float32)
        values -= 0.5
        values *= np.float32(2 * half_width)
        return values

    return source


def generate(model: RandomModel, path: Path) -> None:
    """Write ``model`` to ``path``. About 15 s for half a billion weights in Q8_0 on one core."""
    vocabulary = Vocabulary.from_gguf(_file_or(vocabulary_file, model.vocabulary))
    if model.template:
        vocabulary = replace(vocabulary, chat_template=_file_or(template_file, model.template).read_text())
    write_model(
        path,
        name=model.name,
        shape=model.shape,
        vocabulary=vocabulary,
        weights=random_weights(model.seed),
        quantization=model.quantization,
    )


def cached(model: RandomModel) -> Path:
    """The file of ``model`` in the cache, made on the first call."""
    digest = hashlib.sha256(repr((_FORMAT, sorted(asdict(model).items()))).encode()).hexdigest()[:8]
    path = cache_dir() / "models" / f"{model.name}-{model.quantization}-{digest}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        generate(model, path)
    return path


def _file_or(find: Callable[[str], Path], name: str) -> Path:
    return Path(name) if Path(name).is_file() else find(name)


def _parse(argv: Sequence[str] | None) -> RandomModel:
    parser = argparse.ArgumentParser(
        prog="python -m tests.models.random_model",
        description="Make a model with random weights and print where it lies. Options change a named shape.",
    )
    parser.add_argument("name", nargs="?", default="qwen2-0.5b", choices=sorted(NAMED), help="shape to start from")
    parser.add_argument("--architecture", choices=("llama", "qwen2"))
    for option in ("layers", "width", "heads", "kv-heads", "feed-forward", "n-ctx-train"):
        parser.add_argument(f"--{option}", type=int)
    parser.add_argument("--quantization", choices=get_args(QuantName))
    parser.add_argument("--vocabulary", help="ggml-vocab-NAME.gguf of the source distribution, or a GGUF file")
    parser.add_argument("--template", help="models/templates/NAME.jinja of the source distribution, or a file")
    parser.add_argument("--seed", type=int)
    given = {key: value for key, value in vars(parser.parse_args(argv)).items() if value is not None}
    base = NAMED[given.pop("name")]
    dimensions = {key: given.pop(key) for key in list(given) if key in Shape.__dataclass_fields__}
    if dimensions:
        given["name"] = "random-{architecture}-{layers}x{width}".format_map(asdict(base.shape) | dimensions)
    try:
        return replace(base, shape=replace(base.shape, **dimensions), **given)
    except ValueError as exc:
        parser.error(str(exc))


def main(argv: Sequence[str] | None = None) -> None:
    try:
        print(cached(_parse(argv)))
    except (SourceMissing, ValueError) as exc:
        raise SystemExit(f"random_model: {exc}") from exc


if __name__ == "__main__":
    main()
