"""Trains a tiny chat model on generated dialogues and writes it as GGUF. Needs PyTorch: ``pip install 'lmd[train]'``.

    python -m tests.models.train_tiny tiny-chat --layers 4 --width 128 --heads 4 --kv-heads 2 --feed-forward 352 \\
        --steps 5000 --learning-rate 4e-3

makes ``tiny-chat.gguf`` and ``tiny-chat.pt`` (to go on from with ``--from``) in ``--output``. tests/models/README.md
has the recipes of the bundled files.
"""

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from tests.models.examples import draw_example
from tests.models.gguf_model import Shape, write_model
from tests.models.network import NeuralModel
from tests.models.tokenizer import as_vocabulary, load_tokenizer, train_tokenizer

LONGEST = 420
"""Tokens; longer examples are left out."""
PROMPT_WEIGHT = 0.05
"""How much a prompt's token counts in the loss, where an answer's counts 1."""
EVALUATE_EVERY = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train. ``seed`` draws the dialogues, the initial weights and the positions."""

    steps: int
    batch: int = 32
    learning_rate: float = 3e-3
    seed: int = 18
    warmup_steps: int = 150

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then a cosine down to 2 % of the peak at the last step."""
        cosine = 0.5 * (1 + math.cos(math.pi * min(1, step / self.steps)))
        return self.learning_rate * min(1, (step + 1) / self.warmup_steps) * (0.98 * cosine + 0.02)


@dataclass(frozen=True, slots=True)
class Batch:
    """Padded examples: token ids and each token's weight in the loss, both ``(batch, length)``."""

    tokens: Tensor
    weights: Tensor


def draw_batches(rng: Random, tokenizer: Tokenizer, size: int) -> Iterator[Batch]:
    """Eight batches' worth of examples, those of like length together, in random order."""
    drawn = [draw_example(rng) for _ in range(size * 8)]
    encoded = [(tokenizer.encode(example.prompt).ids, tokenizer.encode(example.answer).ids) for example in drawn]
    fitting = [pair for pair in sorted(encoded, key=_length) if _length(pair) <= LONGEST]
    groups = [fitting[at : at + size] for at in range(0, len(fitting) - size + 1, size)]
    rng.shuffle(groups)
    for group in groups:
        longest = max(map(_length, group))
        tokens, weights = torch.zeros(size, longest, dtype=torch.long), torch.zeros(size, longest)
        for row, (prompt, answer) in enumerate(group):
            length = len(prompt) + len(answer)
            tokens[row, :length] = torch.tensor(prompt + answer)
            weights[row, : len(prompt)] = PROMPT_WEIGHT
            weights[row, len(prompt) : length] = 1
        yield Batch(tokens, weights)


def _length(pair: tuple[list[int], list[int]]) -> int:
    return len(pair[0]) + len(pair[1])


def loss_of(model: NeuralModel, batch: Batch) -> Tensor:
    """Weighted cross-entropy. Rows begin at random positions, so that more of them are learnt than one example has."""
    first_position = torch.randint(0, 512, (len(batch.tokens),))
    logits = model(batch.tokens[:, :-1], first_position)
    losses = functional.cross_entropy(logits.flatten(0, 1), batch.tokens[:, 1:].flatten(), reduction="none")
    weights = batch.weights[:, 1:].flatten()
    return (losses * weights).sum() / weights.sum()


def exact_answers(model: NeuralModel, tokenizer: Tokenizer, n_examples: int = 200, seed: int = 99) -> float:
    """The share of fresh examples whose every answer token is the model's first choice, given those before it."""
    rng, right, seen = Random(seed), 0, 0
    model.eval()
    with torch.no_grad():
        while seen < n_examples:
            for batch in draw_batches(rng, tokenizer, 25):
                best = model(batch.tokens, torch.zeros(len(batch.tokens), dtype=torch.long))[:, :-1].argmax(-1)
                rows = ((best == batch.tokens[:, 1:]) | (batch.weights[:, 1:] < 1)).all(1)
                right, seen = right + int(rows.sum()), seen + len(rows)
    model.train()
    return right / seen


def train(
    model: NeuralModel,
    tokenizer: Tokenizer,
    recipe: Recipe,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train ``model`` in place. ``on_step(step, loss)`` is called after each step, counted from 1."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.05)
    rng, step = Random(recipe.seed), 0
    while step < recipe.steps:
        for batch in draw_batches(rng, tokenizer, recipe.batch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            on_step(step, loss.item())
            if step >= recipe.steps:
                break


def export(model: NeuralModel, tokenizer: Tokenizer, path: Path) -> None:
    """Write ``model`` to ``path`` as an F16 GGUF file that llama.cpp loads."""
    tensors = model.tensors()
    write_model(
        path,
        name=path.stem,
        shape=model.shape,
        vocabulary=as_vocabulary(tokenizer),
        weights=lambda name, _shape: tensors[name],
        quantization="F16",
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.models.train_tiny", description="Train a tiny chat model.")
    parser.add_argument("name", help="stem of the files to write")
    for option in ("layers", "width", "heads", "kv-heads", "feed-forward", "steps"):
        parser.add_argument(f"--{option}", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--from", dest="weights", type=Path, help="go on from this .pt file")
    parser.add_argument("--new-tokenizer", action="store_true", help="train the tokenizer too, and write it beside")
    parser.add_argument("--output", type=Path, default=Path.cwd())
    given = parser.parse_args(argv)

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    given.output.mkdir(parents=True, exist_ok=True)
    if given.new_tokenizer:
        tokenizer = train_tokenizer()
        tokenizer.save(str(given.output / "tokenizer.json"))
    else:
        tokenizer = load_tokenizer()
    shape = Shape(
        architecture="llama",
        layers=given.layers,
        width=given.width,
        heads=given.heads,
        kv_heads=given.kv_heads,
        feed_forward=given.feed_forward,
        n_ctx_train=8192,
    )
    model = NeuralModel(shape, tokenizer.get_vocab_size())
    if given.weights:
        model.load_state_dict(torch.load(given.weights))
    print(f"{given.name}: {sum(p.numel() for p in model.parameters()):,} parameters", flush=True)

    def save() -> None:
        export(model, tokenizer, given.output / f"{given.name}.gguf")
        torch.save(model.state_dict(), given.output / f"{given.name}.pt")

    started = time.perf_counter()

    def report(step: int, loss: float) -> None:
        if step % 50 == 0:
            print(f"{step} loss {loss:.4f} {(time.perf_counter() - started) / step:.3f} s/step", flush=True)
        if step % EVALUATE_EVERY == 0:
            print(f"  exact answers (teacher-forced): {exact_answers(model, tokenizer):.2f}", flush=True)
            save()

    recipe = Recipe(steps=given.steps, batch=given.batch, learning_rate=given.learning_rate, seed=given.seed)
    train(model, tokenizer, recipe, report)
    save()
    print(f"exact answers (teacher-forced): {exact_answers(model, tokenizer, 600):.2f}")


if __name__ == "__main__":
    main()
