"""Sizes of a GGUF file's tensors: what the list of them adds up to."""

from collections.abc import Sequence
from math import prod

#: Tensor types by their number: name, elements in a block, bytes of a block (ggml's ggml_type and type_traits).
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}

#: ``general.file_type``: the recipe that the weights were quantized with (llama.cpp's llama_ftype).
FILE_TYPES: dict[int, str] = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    19: "IQ2_XXS",
    20: "IQ2_XS",
    21: "Q2_K_S",
    22: "IQ3_XS",
    23: "IQ3_XXS",
    24: "IQ1_S",
    25: "IQ4_NL",
    26: "IQ3_S",
    27: "IQ3_M",
    28: "IQ2_S",
    29: "IQ2_M",
    30: "IQ4_XS",
    31: "IQ1_M",
    32: "BF16",
    36: "TQ1_0",
    37: "TQ2_0",
    38: "MXFP4",
    39: "NVFP4",
    40: "Q1_0",
    41: "Q2_0",
}

MAX_BLOCKS = 8192


class Tensors:
    """Sums over a list of tensors that is checked while it grows."""

    def __init__(self, alignment: int) -> None:
        self.alignment = alignment
        self.names: set[str] = set()
        self.n_params = 0
        self.n_bytes = 0
        self.end = 0
        """Where the last tensor ends, counted from the beginning of the tensor data."""
        self.type_bytes: dict[str, int] = {}
        self._next = 0
        self._blocks: dict[int, int] = {}

    def add(self, name: str, shape: Sequence[int], kind: int, offset: int) -> None:
        """Count one tensor. Raises ValueError for one that llama.cpp would refuse.

        ggml wants tensors one after the other without gaps but for the alignment; so no two can share bytes, and the
        sum of all cannot exceed the file's size.
        """
        if name in self.names:
            raise ValueError(f"tensor '{name}' appears twice")
        if kind not in TYPES:
            raise ValueError(f"tensor '{name}' has the unknown type {kind}")
        if offset != self._next:
            raise ValueError(f"tensor '{name}' lies at offset {offset} of the data, where {self._next} was expected")
        type_name, block, block_bytes = TYPES[kind]
        elements = prod(shape)
        row = shape[0] if shape else 1
        if row % block:
            raise ValueError(f"tensor '{name}' has rows of {row}, not a multiple of {block} as {type_name} needs")
        size = elements // block * block_bytes
        if size >= 1 << 63:
            raise ValueError(f"tensor '{name}' claims the shape {'×'.join(map(str, shape))}")
        self.names.add(name)
        self.n_params += elements
        self.n_bytes += size
        self.end = offset + size
        self._next = -(-self.end // self.alignment) * self.alignment
        self.type_bytes[type_name] = self.type_bytes.get(type_name, 0) + size
        if name.startswith("blk."):
            number = name[4 : name.find(".", 4)]
            if number.isdecimal() and len(number) < 5 and int(number) < MAX_BLOCKS:
                self._blocks[int(number)] = self._blocks.get(int(number), 0) + size

    @property
    def block_bytes(self) -> tuple[int, ...]:
        return tuple(self._blocks.get(n, 0) for n in range(max(self._blocks, default=-1) + 1))


def quantization_name(file_type: int | None, type_bytes: dict[str, int]) -> str:
    """The file's quantization: what it says, else the tensor type that most of its bytes have; "" without tensors."""
    if file_type is not None and file_type & ~1024 in FILE_TYPES:  # 1024 marks a guess of the converter's
        return FILE_TYPES[file_type & ~1024]
    return max(type_bytes, key=lambda name: type_bytes[name], default="")
