"""The tiny models' tokenizer: byte-level BPE of 1,024 tokens, trained on their own dialogues."""

import json
from pathlib import Path
from random import Random

from gguf import TokenType
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from tests.models.examples import CHAT_TEMPLATE, draw_example
from tests.models.gguf_model import Vocabulary
from tests.models.metadata import Field

TOKENIZER_FILE = Path(__file__).with_name("tokenizer.json")

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""Never text. Ids 0, 1, 2: padding and BOS, start of a turn, end of a turn (EOS)."""
MARKERS = (
    *("<think>", "</think>", "<tool_call>", "</tool_call>"),
    *("<tool_response>", "</tool_response>", "<tools>", "</tools>"),
)
"""One token each, but text that a client may see."""


def train_tokenizer(n_examples: int = 20000, vocab_size: int = 1024, seed: int = 42) -> Tokenizer:
    """A tokenizer trained on the first ``n_examples`` of ``seed``. Equal arguments give an equal one; takes seconds."""
    rng = Random(seed)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=[*CONTROL, *MARKERS], initial_alphabet=ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator((draw_example(rng).text for _ in range(n_examples)), trainer)
    return tokenizer


def load_tokenizer(path: Path = TOKENIZER_FILE) -> Tokenizer:
    """The tokenizer that the bundled models were trained with."""
    return Tokenizer.from_file(str(path))


def as_vocabulary(tokenizer: Tokenizer, chat_template: str = CHAT_TEMPLATE) -> Vocabulary:
    """``tokenizer`` as a GGUF file holds it: llama.cpp then splits text exactly as it does."""
    tokens = sorted(ids := tokenizer.get_vocab(), key=ids.__getitem__)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    kinds = dict.fromkeys(CONTROL, TokenType.CONTROL) | dict.fromkeys(MARKERS, TokenType.USER_DEFINED)
    fields = {
        "model": Field.text("gpt2"),
        "pre": Field.text("gpt-2"),
        "tokens": Field.texts(tokens),
        "token_type": Field.int32s(int(kinds.get(token, TokenType.NORMAL)) for token in tokens),
        "merges": Field.texts(merge if isinstance(merge, str) else " ".join(merge) for merge in merges),
        "bos_token_id": Field.uint32(tokens.index("<|endoftext|>")),
        "eos_token_id": Field.uint32(tokens.index("<|im_end|>")),
        "padding_token_id": Field.uint32(tokens.index("<|endoftext|>")),
        "add_bos_token": Field.flag(False),
    }
    return Vocabulary({f"tokenizer.ggml.{key}": field for key, field in fields.items()}, chat_template)
