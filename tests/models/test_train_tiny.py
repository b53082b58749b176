"""A few steps of training, and llama.cpp agrees with PyTorch about what came out."""

# ruff: noqa: E402 - these imports need what importorskip looks for

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="training the tiny models needs PyTorch: pip install torch==2.13.0")
pytest.importorskip("tokenizers", reason="the tiny models' recipe needs tokenizers: pip install 'lmd[test]'")

from tests.models import train_tiny
from tests.models.gguf_model import Shape
from tests.models.network import NeuralModel
from tests.models.tokenizer import load_tokenizer
from tests.models.train_tiny import Recipe, draw_batches, export, loss_of, train

SHAPE = Shape(architecture="llama", layers=2, width=32, heads=4, kv_heads=2, feed_forward=64, n_ctx_train=512)


@pytest.fixture
def model() -> Any:
    torch.manual_seed(0)
    return NeuralModel(SHAPE, load_tokenizer().get_vocab_size())


def test_a_few_steps_lower_the_loss(model: Any) -> None:
    losses: list[float] = []
    train(model, load_tokenizer(), Recipe(steps=12, batch=8, warmup_steps=1), lambda step, loss: losses.append(loss))
    assert len(losses) == 12
    assert losses[-1] < losses[0]


def test_llama_cpp_predicts_what_pytorch_predicts(
    model: Any, tmp_path: Path, llama_sees: Callable[[Path, str], Any]
) -> None:
    tokenizer, path = load_tokenizer(), tmp_path / "few-steps.gguf"
    train(model, tokenizer, Recipe(steps=10, batch=8, learning_rate=1e-2, warmup_steps=1))
    export(model, tokenizer, path)
    text = "<|im_start|>user\nCount to 20.<|im_end|>\n<|im_start|>assistant\n"
    tokens = torch.tensor([tokenizer.encode(text).ids])
    with torch.no_grad():
        logits = model(tokens, torch.zeros(1, dtype=torch.long))[0, -1]
    seen = llama_sees(path, text)
    assert seen.tokens == tokens[0].tolist()
    assert seen.best == int(logits.argmax())
    assert seen.deviation == pytest.approx(float(logits.std(unbiased=False)), rel=0.02)


def test_prompts_count_little_and_padding_counts_nothing() -> None:
    for batch in draw_batches(Random(3), load_tokenizer(), 8):
        assert batch.tokens.shape == batch.weights.shape
        assert bool(torch.isin(batch.weights, torch.tensor([0, train_tiny.PROMPT_WEIGHT, 1])).all())
        assert bool((batch.tokens[batch.weights == 0] == 0).all())


def test_padding_does_not_change_the_loss(model: Any) -> None:
    batch = next(draw_batches(Random(3), load_tokenizer(), 8))
    pad = torch.nn.functional.pad
    longer = train_tiny.Batch(pad(batch.tokens, (0, 7)), pad(batch.weights, (0, 7)))
    torch.manual_seed(1)
    loss = loss_of(model, batch).item()
    torch.manual_seed(1)
    assert loss_of(model, longer).item() == pytest.approx(loss, rel=1e-5)


def test_the_command_writes_a_model_and_goes_on_from_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], llama_sees: Callable[[Path, str], Any]
) -> None:
    arguments = "few --layers 1 --width 32 --heads 2 --kv-heads 1 --feed-forward 64 --steps 2 --batch 4 --threads 1"
    train_tiny.main([*arguments.split(), "--output", str(tmp_path)])
    train_tiny.main([*arguments.split(), "--output", str(tmp_path), "--from", str(tmp_path / "few.pt")])
    assert llama_sees(tmp_path / "few.gguf", "Hello").finite
    assert "exact answers" in capsys.readouterr().out
