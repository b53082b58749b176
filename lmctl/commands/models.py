"""``lmctl ls``."""

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


def list_models(common: Common) -> None:
    models = common.client().get("/models", list[ModelRow])
    if common.json:
        print_json(models)
        return
    whole = [model for model in models if not model.error]
    if whole:
        print_table(COLUMNS, [cells(model) for model in whole])
    else:
        note("No models. Put *.gguf files into one of the directories that [paths] models names.")
    for model in models:
        if model.error:
            note(f"{model.key} cannot be served: {model.error} ({model.path})")


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
