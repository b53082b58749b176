"""Generated models load, compute sane logits, and are the same whenever they are made."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from tests.bench import llama_source
from tests.models import random_model
from tests.models.gguf_model import QuantName, Shape
from tests.models.random_model import NAMED, RandomModel, cached, generate

TINY_CHAT = Path(__file__).with_name("tiny-chat.gguf")
TINY = RandomModel(
    shape=Shape(architecture="llama", layers=3, width=64, heads=4, kv_heads=2, feed_forward=160),
    vocabulary=str(TINY_CHAT),
)

SeeModel = Callable[[Path, str], Any]


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
@pytest.mark.parametrize("quantization", ["F16", "Q8_0", "Q4_0"])
def test_every_architecture_and_quantization_gives_finite_logits(
    architecture: Literal["llama", "qwen2"], quantization: QuantName, tmp_path: Path, llama_sees: SeeModel
) -> None:
    path = tmp_path / "model.gguf"
    model = replace(TINY, shape=replace(TINY.shape, architecture=architecture), quantization=quantization)
    generate(model, path)
    seen = llama_sees(path, "What is the weather in Rome?")
    assert seen.finite
    assert 0.3 < seen.deviation < 3
    assert seen.n_vocab == 1024


def test_depth_does_not_blow_the_logits_up(tmp_path: Path, llama_sees: SeeModel) -> None:
    path = tmp_path / "deep.gguf"
    generate(replace(TINY, shape=replace(TINY.shape, layers=48, tied=False)), path)
    assert 0.3 < llama_sees(path, "Count to 20.").deviation < 3


def test_equal_arguments_give_equal_files_and_another_seed_another(tmp_path: Path) -> None:
    def digest(model: RandomModel) -> str:
        path = tmp_path / "model.gguf"
        generate(model, path)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    assert digest(TINY) == digest(TINY) != digest(replace(TINY, seed=1))


def test_a_cached_model_is_made_once_and_another_model_gets_another_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LMD_CACHE", str(tmp_path))
    first = cached(TINY)
    monkeypatch.setattr(random_model, "generate", lambda model, path: pytest.fail("made again"))
    assert cached(TINY) == first
    monkeypatch.undo()
    monkeypatch.setenv("LMD_CACHE", str(tmp_path))
    assert cached(replace(TINY, shape=replace(TINY.shape, layers=1))) != first
    assert len(list((tmp_path / "models").iterdir())) == 2


def test_the_command_changes_a_named_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], llama_sees: SeeModel
) -> None:
    monkeypatch.setenv("LMD_CACHE", str(tmp_path))
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }}")
    arguments = "qwen2-0.5b --layers 1 --width 64 --heads 4 --kv-heads 2 --feed-forward 96 --quantization F16"
    random_model.main([*arguments.split(), "--vocabulary", str(TINY_CHAT), "--template", str(template)])
    path = Path(capsys.readouterr().out.strip())
    assert path.name.startswith("random-qwen2-1x64-F16-")
    assert llama_sees(path, "Hello").template == "{{ messages[0].content }}"


def test_the_command_says_what_is_wrong_with_a_shape(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        random_model.main(["qwen2-0.5b", "--heads", "13"])
    assert exit_.value.code == 2
    assert "even multiple of the 13 heads" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(NAMED))
def test_named_shapes_use_vocabularies_and_templates_that_exist(name: str) -> None:
    if llama_source.find() is None:
        pytest.skip("llama-cpp-python's source is not in the cache: python -m tests.bench.llama_source fetches it")
    assert llama_source.vocabulary_file(NAMED[name].vocabulary).stat().st_size > 1_000_000
    assert "messages" in llama_source.template_file(NAMED[name].template).read_text()
