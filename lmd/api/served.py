"""Which model, instance and settings serve a requested name."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isinf
from typing import TYPE_CHECKING, Literal

from lmd.api.limits import refuse_oversized
from lmd.api.prompt import templates_of
from lmd.config.preset import ChatSettings
from lmd.errors import AmbiguousModel, Conflict, InvalidRequest, ModelNotFound, Unsupported
from lmd.generation import GenerationRequest
from lmd.library.resolve import Target, listing, resolve
from lmd.loading import DEFAULT_CONTEXT_LENGTH, PROMPT_LOOKUP, LoadParams
from lmd.pool.wanted import Origin, Wanted

if TYPE_CHECKING:
    from lmd.api.services import Services
    from lmd.library.catalog import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """``target`` says how to prompt and sample, ``wanted`` what has to be in memory."""

    name: str
    target: Target
    wanted: Wanted

    @property
    def preset(self) -> str | None:
        return self.target.preset

    @property
    def encodes(self) -> bool:
        """It turns texts into vectors or scores, and generates nothing."""
        return self.wanted.model.header.is_embedding


def find_served(services: Services, request: GenerationRequest) -> Served:
    """What serves ``request.model``: a preset, alias, model key or its short form, or a loaded instance's identifier.

    ModelNotFound, AmbiguousModel; Conflict where the model is not loaded and ``[models] jit`` is off.
    """
    snapshot = services.config.snapshot
    refuse_oversized(request, snapshot.settings.limits)
    name = request.model
    try:
        target = resolve(name, snapshot, services.catalog, request.preset)
        found = services.pool.find(target.name)
        name = target.name
    except ModelNotFound as error:
        if error.param == "preset":
            raise
        found = services.pool.find(name)
        if found is None:
            raise
        target = resolve(found.name, snapshot, services.catalog, request.preset)
    # What runs under the name serves it, also when it was loaded with settings of its own (`lmctl load`).
    is_model = found is not None and found.model.path == target.model.path
    draft = _draft_of(services, request)
    has_draft = found is not None and (draft is None or (found.draft is not None and found.draft.path == draft.path))
    if is_model and found is not None and has_draft and _is_long_enough(services, found, request):
        return Served(name=name, target=target, wanted=found)
    wanted = _wanted(target)
    if draft is not None:
        if is_model and found is not None:  # with all that was said for it, and this draft besides
            wanted = replace(found.renewed(wanted), origin=Origin.JIT)
        wanted = replace(wanted, draft=draft, load=replace(wanted.load, draft_model=draft.key))
    if request.context_length is not None:
        wanted = _with_context(wanted, request.context_length)
        if found is not None and not _is_long_enough(services, found, request):
            # What runs under the name goes on; this is another instance, with a name that says why.
            wanted = replace(wanted, identifier=f"{target.name}:{request.context_length}")
    if request.ttl is not None:
        # "Never" lasts until the memory is wanted: to pin is a preset's, or whose who may manage.
        wanted = replace(wanted, ttl=_finite(request.ttl), ttl_is_own=True)
    if not snapshot.settings.models.jit and not services.pool.holds(wanted):
        raise Conflict(
            f"'{name}' is not loaded, and [models] jit = false keeps requests from loading it.",
            hint=f"Load it with 'lmctl load {name}'.",
        )
    return Served(name=name, target=target, wanted=wanted)


def _draft_of(services: Services, request: GenerationRequest) -> Model | None:
    """The draft model that has to be in memory for the request. ModelNotFound and AmbiguousModel name the field."""
    if request.draft_model in {None, "", PROMPT_LOOKUP}:
        return None
    try:
        return services.catalog.find(request.draft_model)
    except (ModelNotFound, AmbiguousModel) as error:
        error.param = "draft_model"
        raise


def _is_long_enough(services: Services, found: Wanted, request: GenerationRequest) -> bool:
    """Whether the instance ``found`` has the context that the request needs at least."""
    if request.context_length is None:
        return True
    loaded = next((row.context_length for row in services.pool.rows() if row.id == found.id), 0)
    return (loaded or _planned_context(found)) >= request.context_length


def _with_context(wanted: Wanted, least: int) -> Wanted:
    if _planned_context(wanted) >= least:
        return wanted
    return replace(wanted, load=replace(wanted.load, context_length=least))


def _planned_context(wanted: Wanted) -> int:
    """The context that a load is asked for, where memory allows."""
    trained = wanted.model.header.context_length or DEFAULT_CONTEXT_LENGTH
    return wanted.load.context_length or min(trained, DEFAULT_CONTEXT_LENGTH)


def explicit_load(
    services: Services, name: str, *, load: LoadParams, ttl: float | None, identifier: str | None
) -> Wanted:
    """What ``lmctl load`` asks for: ``load`` goes over the settings of the name, and without ``ttl`` it stays.

    ModelNotFound, AmbiguousModel.
    """
    target = resolve(name, services.config.snapshot, services.catalog)
    over = load.over(target.load)
    draft = services.catalog.find(load.draft_model) if load.draft_model not in {None, PROMPT_LOOKUP} else target.draft
    return replace(
        _wanted(target),
        load=over,
        overrides=load,
        draft=draft,
        ttl=ttl,
        ttl_is_own=True,
        identifier=identifier,
        origin=Origin.EXPLICIT,
    )


def wanted_of(services: Services, name: str, origin: Origin = Origin.JIT) -> Wanted:
    """What has to be in memory to serve ``name`` by its settings alone. ModelNotFound, AmbiguousModel."""
    return replace(_wanted(resolve(name, services.config.snapshot, services.catalog)), origin=origin)


def _wanted(target: Target) -> Wanted:
    if target.model.format == "mlx":
        raise Unsupported(
            f"{target.model.key} is an MLX model, and this build of lmd has no engine for those: it serves GGUF.",
            hint=f"Look for a GGUF conversion: lmctl get {target.model.repo.removesuffix('-mlx')}",
            param="model",
        )
    return Wanted(
        model=target.model,
        name=target.name,
        load=target.load,
        draft=target.draft,
        ttl=_finite(target.ttl),
        pinned=target.pinned,
    )


def _finite(ttl: float) -> float | None:
    """The pool's way to say "never" is None."""
    return None if isinf(ttl) else ttl


@dataclass(frozen=True, slots=True)
class Listed:
    """A name that is listed. ``created``: Unix seconds."""

    name: str
    created: float
    template: Literal["own", "chatml"] | None
    """Whose chat template it gets; None: it generates nothing, or nobody can tell any more."""


def listed(services: Services) -> dict[str, Listed]:
    """By name: presets, models, and instances' identifiers."""
    names = {
        one.name: _listed(one.name, one.model, one.preset.chat if one.preset else ChatSettings())
        for one in listing(services.config.snapshot, services.catalog)
    }
    for row in services.pool.rows():
        if (found := services.pool.find(row.id)) is not None:
            of = names.get(found.name) or Listed(row.id, row.loaded_at, None)
            names.setdefault(row.id, replace(of, name=row.id))
    return names


def _listed(name: str, model: Model, chat: ChatSettings) -> Listed:
    generates = model.format == "gguf" and model.type != "embeddings"
    return Listed(name, model.mtime, ("own" if templates_of(model, chat) else "chatml") if generates else None)


def only_name(services: Services) -> str:
    """The model that a request means which names none: the only one in memory, or else the only one there is.

    InvalidRequest where it could mean several.
    """
    rows = services.pool.rows()
    names = [row.id for row in rows] if rows else list(listed(services))
    if len(names) == 1:
        return names[0]
    raise InvalidRequest(
        "'model' is missing, and there is not just one model that could be meant.",
        hint="Name one of those that /v1/models lists.",
        param="model",
    )


def find_listed(services: Services, name: str) -> Listed:
    """What ``name``, any that a request may use, is listed as. ModelNotFound, AmbiguousModel."""
    try:
        target = resolve(name, services.config.snapshot, services.catalog)
        return _listed(target.name, target.model, target.chat)
    except ModelNotFound:
        if (found := listed(services).get(name)) is None:
            raise
        return found
