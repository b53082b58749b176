"""Reads the header of a GGUF file: what the model is, without its weights and without its vocabulary."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Scalar = bool | int | float | str


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What one GGUF file says of itself. Sizes in bytes, lengths in tokens.

    ``values`` has every scalar, every string up to MAX_STRING and every array of scalars up to MAX_KEPT elements, by
    its full key. Longer arrays (the vocabulary) are there by their length alone, in ``lengths``.
    """

    version: int
    size: int
    """Of the file."""
    n_tensors: int
    n_params: int
    tensor_bytes: int
    block_bytes: tuple[int, ...]
    """Tensor bytes of each block (``blk.N.``), for deciding how many layers fit a device."""
    quantization: str
    """As llama.cpp names it: Q4_K_M, F16, …; "" where the file holds no weights."""
    tied_output: bool
    """No output matrix of its own: the token embedding serves as output as well."""
    values: Mapping[str, Scalar | list[Scalar]] = field(hash=False)
    lengths: Mapping[str, int] = field(hash=False)

    @property
    def architecture(self) -> str:
        return str(self.values.get("general.architecture", ""))


def read_header(path: Path) -> Header:
    """Read the header of the GGUF file at ``path``. Blocks for a few ms; raises ModelFileError and nothing else."""
    raise NotImplementedError
