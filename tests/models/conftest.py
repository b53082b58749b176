"""What a generated model must pass: llama.cpp loads it, and its logits are numbers."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

_PROGRAM = """
import json, sys
import llama_cpp as llama, numpy as np
path, text = sys.argv[1], sys.argv[2].encode()
llama.llama_backend_init()
model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
assert model, "llama.cpp refused the file"
params = llama.llama_context_default_params()
params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
context = llama.llama_init_from_model(model, params)
vocabulary = llama.llama_model_get_vocab(model)
n_vocab = llama.llama_vocab_n_tokens(vocabulary)
tokens = (llama.llama_token * 200)()
n_tokens = llama.llama_tokenize(vocabulary, text, len(text), tokens, 200, False, True)
assert llama.llama_decode(context, llama.llama_batch_get_one(tokens, n_tokens)) == 0
logits = np.ctypeslib.as_array(llama.llama_get_logits(context), (n_vocab,))
template = llama.llama_model_chat_template(model, None)
print(json.dumps({
    "tokens": tokens[:n_tokens], "n_vocab": n_vocab, "finite": bool(np.isfinite(logits).all()),
    "deviation": float(logits.std()), "best": int(logits.argmax()), "template": template.decode() if template else "",
    "eos": llama.llama_vocab_eos(vocabulary), "n_params": llama.llama_model_n_params(model),
}))
"""


@dataclass(frozen=True)
class Seen:
    """What llama.cpp says of a model: its reading of ``text``, and the logits after it."""

    tokens: list[int]
    n_vocab: int
    finite: bool
    deviation: float
    best: int
    template: str
    eos: int
    n_params: int


@pytest.fixture
def llama_sees() -> Callable[[Path, str], Seen]:
    """Load a model and compute a prompt, in a process of its own: an abort of llama.cpp must not end pytest."""

    def see(path: Path, text: str) -> Seen:
        done = subprocess.run([sys.executable, "-c", _PROGRAM, path, text], capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr[-3000:]
        return msgspec.json.decode(done.stdout.splitlines()[-1], type=Seen)

    return see
