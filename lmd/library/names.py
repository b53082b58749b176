"""The names by which models are asked for: keys, and short forms of them."""

import re
from collections import defaultdict
from collections.abc import Mapping
from difflib import get_close_matches

from lmd.errors import AmbiguousModel, ModelNotFound
from lmd.library.model import Model


class Names:
    """Finds the model that a name means. Made once for each picture of the library; immutable."""

    def __init__(self, models: Mapping[str, Model]) -> None:
        self._models = models
        keys: dict[str, set[str]] = defaultdict(set)
        forms: dict[str, set[str]] = defaultdict(set)
        for key, model in models.items():
            keys[key.casefold()].add(key)
            for form in _short_forms(model):
                forms[form.casefold()].add(key)
        # A whole key in other case is meant before a short form of another model.
        self._keys = {**forms, **keys}

    def find(self, name: str) -> Model:
        """The model of a key, a key in other case, or an unambiguous short form. ModelNotFound, AmbiguousModel."""
        if name in self._models:
            return self._models[name]
        keys = sorted(self._keys.get(name.casefold(), ()))
        if len(keys) == 1:
            return self._models[keys[0]]
        if keys:
            raise AmbiguousModel(name, keys)
        raise ModelNotFound(f"There is no model named '{name[:200]}'.", hint=self._hint(name), param="model")

    def _hint(self, name: str) -> str:
        if not self._models:
            return "No models were found in the model directories; 'lmctl ls' tells what is there."
        near = get_close_matches(name.casefold()[:200], self._keys, n=4, cutoff=0.5)
        keys = list(dict.fromkeys(key for form in near for key in sorted(self._keys[form])))[:4]
        return f"Did you mean {' or '.join(keys)}?" if keys else "'lmctl ls' lists the models there are."


def _short_forms(model: Model) -> set[str]:
    forms = {model.stem, f"{model.stem}.gguf", model.path.name}
    if model.repo:
        bare = re.sub(r"[-_.]gguf$", "", model.repo, flags=re.IGNORECASE)
        repos = {prefix + repo for prefix in ("", f"{model.publisher}/") for repo in (model.repo, bare)}
        quantization = model.header.quantization
        forms |= repos | {f"{repo}/{model.stem}" for repo in repos}
        forms |= {f"{repo}@{quantization}" for repo in repos if quantization}
    return forms
