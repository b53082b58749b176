"""Quantizations by the names that files on the hub bear. Pure."""

import re
from collections.abc import Iterable

_NAME = re.compile(
    r"(?<![A-Z0-9])((?:UD[-_])?(?:I?Q[1-8](?:_[A-Z0-9]+)*|TQ[12]_0|MXFP4(?:_MOE)?|BF16|F16|FP16|F32|FP32))(?![A-Z0-9])"
)

PREFERENCE = (
    *("Q4_K_M", "MXFP4_MOE", "MXFP4", "UD-Q4_K_XL", "Q4_K_XL", "Q4_K_L", "Q4_K_S", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0"),
    *("Q5_K_M", "UD-Q5_K_XL", "Q5_K_L", "Q5_K_S", "Q5_1", "Q5_0", "Q6_K", "Q6_K_L", "UD-Q6_K_XL", "Q8_0", "UD-Q8_K_XL"),
    *("Q3_K_L", "UD-Q3_K_XL", "Q3_K_XL", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS", "IQ3_XXS"),
    *("UD-Q2_K_XL", "Q2_K_L", "Q2_K", "IQ2_M", "IQ2_S", "Q2_K_S", "IQ2_XS", "IQ2_XXS", "TQ2_0"),
    *("IQ1_M", "IQ1_S", "TQ1_0", "Q1_0", "F16", "BF16", "F32"),
)
"""What is proposed: four bits, where most of the quality is had for a third of the size; then better, then smaller
ones. Nobody who does not ask for full width wants to wait for it."""

_RANK = {name: rank for rank, name in enumerate(PREFERENCE)}


def quantization_of(path: str) -> str:
    """The quantization that a file's name tells, else that of its directory; "" where neither does."""
    for part in reversed(path.rsplit("/", 2)[-2:]):
        stem = re.sub(r"\.gguf$", "", part, flags=re.IGNORECASE)
        if found := _NAME.findall(stem.upper()):
            return str(found[-1]).replace("UD_", "UD-").replace("FP16", "F16").replace("FP32", "F32")
    return ""


def rank(quantization: str) -> int:
    """Lower is proposed first."""
    return _RANK.get(quantization, len(_RANK))


def matching(asked: str, names: Iterable[str]) -> list[str]:
    """Which of ``names`` ``asked`` means: the one of that name whatever its case and dashes, else all that begin so."""

    def plain(name: str) -> str:
        return re.sub(r"[-_. ]", "", name).casefold()

    names = list(names)
    exact = [name for name in names if plain(name) == plain(asked)]
    return exact or [name for name in names if plain(name).startswith(plain(asked))]
