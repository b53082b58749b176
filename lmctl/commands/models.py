"""``lmctl ls``."""

from collections.abc import Sequence

from lmctl.options import Common
from lmctl.output import Column, note, print_facts, print_json, print_table
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


def list_models(common: Common, kinds: Sequence[str] = (), *, detailed: bool = False) -> None:
    """``kinds``: llm, embeddings, vlm; none: all. A model that sees is a language model too."""
    models = common.client().get("/models", list[ModelRow])
    if kinds:
        models = [row for row in models if row.type in kinds or (row.type == "vlm" and "llm" in kinds)]
    if common.json:
        print_json(models)
        return
    whole = [model for model in models if not model.error]
    if whole and detailed:
        for n, model in enumerate(whole):
            print("\n" * bool(n), end="")
            print_facts(details(model))
    elif whole:
        print_table(COLUMNS, [cells(model) for model in whole])
    elif kinds:
        note(f"No models of this kind ({', '.join(kinds)}). 'lmctl ls' lists all.")
    else:
        note("No models. 'lmctl get' fetches one; or put *.gguf files into a directory that [paths] models names.")
    for model in models:
        if model.error:
            note(f"{model.key} cannot be served: {model.error} ({model.path})")


def details(model: ModelRow) -> list[tuple[str, str]]:
    told = zip((column.title.lower() for column in COLUMNS), cells(model), strict=True)
    return [
        *((name, value or "-") for name, value in told),
        ("format", model.format),
        ("publisher", model.publisher or "-"),
        ("files", str(model.parts)),
        ("vision", model.mmproj or "-"),
        ("template", "yes" if model.has_template else "no"),
        ("path", model.path),
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
