"""LoRA adapters over the tiny model and over an encoder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmd.engine.llama import Backend
from lmd.errors import LoadFailed
from lmd.loading import Adapter
from tests.lmd.engine.driver import TINY, Driver, chat
from tests.models.lora import write_adapter

QUESTION = chat("Count to 20.")


def logprobs(driver: Driver) -> list[float]:
    answer = driver.ask(QUESTION, max_tokens=8, raw={"logprobs": 0})
    return [one.logprob for one in answer.logprobs]


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "style.gguf", TINY)


def test_an_adapter_changes_what_the_model_says(make: Callable[..., Driver], adapter: Path) -> None:
    plain, adapted = make(), make(adapters=(Adapter(path=str(adapter)),))
    assert logprobs(plain) != pytest.approx(logprobs(adapted), abs=0.01)
    assert adapted.instance.loaded.model_bytes == plain.instance.loaded.model_bytes + adapter.stat().st_size


def test_scale_0_leaves_the_model_as_it_is(make: Callable[..., Driver], adapter: Path) -> None:
    adapted = make(adapters=(Adapter(path=str(adapter), scale=0.0),))
    assert logprobs(adapted) == pytest.approx(logprobs(make()), abs=1e-6)


def test_the_scale_says_how_much(make: Callable[..., Driver], tmp_path: Path, adapter: Path) -> None:
    once = make(adapters=(Adapter(path=str(adapter), scale=1.0),))
    halves = make(adapters=tuple(Adapter(path=str(_copy(adapter, tmp_path / f"{n}.gguf")), scale=0.5) for n in "ab"))
    assert logprobs(halves) == pytest.approx(logprobs(once), abs=1e-3)


def _copy(source: Path, target: Path) -> Path:
    target.write_bytes(source.read_bytes())
    return target


def test_an_adapter_changes_vectors_too(backend: Backend, tmp_path: Path) -> None:
    from tests.lmd.engine.test_embedding import SHAPE, VOCABULARY, WEIGHTS, Encoder, write_bert

    model = write_bert(tmp_path / "bert.gguf", WEIGHTS, VOCABULARY, SHAPE)
    adapter = write_adapter(tmp_path / "style.gguf", model, architecture="bert")
    vectors = []
    for adapters in (None, (Adapter(path=str(adapter)),)):
        encoder = Encoder(backend, model, adapters=adapters)
        vectors.append(encoder.embed(["hello world"])[0])
        encoder.close()
    assert np.abs(vectors[0] - vectors[1]).max() > 0.01


def _other_architecture(path: Path) -> Any:
    return write_adapter(path, TINY, architecture="qwen2")


def _a_model(path: Path) -> Any:
    return _copy(TINY, path)


def _garbage(path: Path) -> Any:
    path.write_bytes(b"GGUF" + b"\xff" * 64)


def _nothing(path: Path) -> Any:
    return None


@pytest.mark.parametrize("damage", [_other_architecture, _a_model, _garbage, _nothing])
def test_a_file_that_is_no_adapter_of_this_model_fails_the_load(
    make: Callable[..., Driver], tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    path = tmp_path / "wrong.gguf"
    damage(path)
    with pytest.raises(LoadFailed, match=r"wrong\.gguf"):
        make(adapters=(Adapter(path=str(path)),))
