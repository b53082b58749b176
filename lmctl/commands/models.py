"""``lmctl ls``."""

from collections.abc import Sequence
from pathlib import PurePath

from lmctl.options import Common
from lmctl.output import Column, note, print_json, print_table
from lmctl.text import count, size
from lmd.protocol import ModelRow

COLUMNS = (
    Column("MODEL"),
    Column("TYPE", keep=2),
    Column("ARCH", keep=3),
    Column("PARAMS", keep=5, align="right"),
    Column("QUANT", keep=6),
    Column("SIZE", keep=8, align="right"),
    Column("CONTEXT", keep=4, align="right"),
    Column("LOADED", keep=7),
    Column("PRESETS", keep=1),
)
DETAILS = (
    Column("FORMAT", keep=0),
    Column("FILES", keep=0, align="right"),
    Column("VISION", keep=0),
    Column("TEMPLATE", keep=0),
    Column("PATH", keep=2),
)


def list_models(common: Common, kinds: Sequence[str] = (), *, detailed: bool = False) -> None:
    """``kinds``: llm, embeddings, vlm; none: all. A model that sees is a language model too."""
    models = common.client().get("/models", list[ModelRow])
    if kinds:
        models = [row for row in models if row.type in kinds or (row.type == "vlm" and "llm" in kinds)]
    if common.json:
        print_json(models)
        return
    whole = [model for model in models if not model.error]
    if whole:
        more = DETAILS if detailed else ()
        print_table((*COLUMNS, *more), [[*cells(model), *(details(model) if detailed else [])] for model in whole])
    elif kinds:
        note(f"No models of this kind ({', '.join(kinds)}). 'lmctl ls' lists all.")
    else:
        note("No models. 'lmctl get' fetches one; or put *.gguf files into a directory that [paths] models names.")
    for model in models:
        if model.error:
            note(f"{model.key} cannot be served: {model.error} ({model.path})")


def details(model: ModelRow) -> list[str]:
    return [
        model.format,
        str(model.parts),
        PurePath(model.mmproj).name if model.mmproj else "",
        "yes" if model.has_template else "",
        model.path,
    ]


def cells(model: ModelRow) -> list[str]:
    return [
        model.key,
        model.type,
        model.architecture,
        count(model.n_params),
        model.quantization,
        size(model.size),
        str(model.context_length) if model.context_length else "-",
        ", ".join(model.loaded),
        ", ".join(model.presets),
    ]
