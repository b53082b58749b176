"""LoRA adapters with random weights, over any of the models here."""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, GGUFType, GGUFWriter

RANK = 4


def write_adapter(path: Path, model: Path, *, architecture: str = "llama", seed: int = 0, size: float = 0.5) -> Path:
    """An adapter over the attention's queries and outputs of ``model``. ``size``: about how much of the weights it
    changes; 0: nothing. Gives ``path`` back."""
    rng = np.random.default_rng(seed)
    writer: Any = GGUFWriter(path, architecture)
    writer.add_type(GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for tensor in GGUFReader(model).tensors:
        if tensor.name.endswith(("attn_q.weight", "attn_output.weight")):
            n_in, n_out = (int(n) for n in tensor.shape)
            inner = rng.normal(0, 1 / np.sqrt(n_in), (RANK, n_in))
            writer.add_tensor(f"{tensor.name}.lora_a", inner.astype(np.float32))
            writer.add_tensor(f"{tensor.name}.lora_b", rng.normal(0, size, (n_out, RANK)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
