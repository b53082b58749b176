"""A loaded model ready to generate: weights, context and engine, with what loading really gave."""

import queue
import time
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Protocol

from lmd.engine.encoder import apply_adapters
from lmd.engine.engine import Engine, Sink
from lmd.engine.grammar import Grammars, GrammarSource, Guide
from lmd.engine.llama import Backend, Model
from lmd.engine.opening import DEFAULT_PARALLEL, Opening
from lmd.engine.sequence import SequenceSpec
from lmd.engine.speculative import Drafter, DraftModel, PromptLookup
from lmd.errors import LmdError, Unsupported
from lmd.generation import FinishReason, SamplingParams, Usage
from lmd.loading import PROMPT_LOOKUP, LoadedModel, LoadParams


class ConstraintMessage(Protocol):
    """The fields of `lmd.worker.messages.Constraint`."""

    @property
    def kind(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def triggers(self) -> Seq[str]: ...


class GenerateMessage(Protocol):
    """The fields of `lmd.worker.messages.Generate` that the engine reads."""

    @property
    def sampling(self) -> SamplingParams: ...
    @property
    def add_special(self) -> bool: ...
    @property
    def logit_bias(self) -> Mapping[int, float]: ...
    @property
    def logprobs(self) -> int | None: ...
    @property
    def ignore_eos(self) -> bool: ...
    @property
    def cache_prompt(self) -> bool: ...
    @property
    def prompt_logprobs(self) -> bool: ...
    @property
    def preserved(self) -> Seq[str]: ...
    @property
    def draft(self) -> str: ...
    @property
    def constraint(self) -> ConstraintMessage | None: ...


class EngineInstance:
    """Loads on construction, telling progress 0..1. Raises LoadFailed, InsufficientMemory, Unsupported."""

    def __init__(
        self,
        backend: Backend,
        path: str,
        params: LoadParams,
        sink: Sink,
        *,
        draft_path: str | None = None,
        free_memory: int = 0,
        free_vram: int = 0,
        prompt_cache: int = 0,
        kept: Model | None = None,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        """``kept``: what `park` gave, of the same file and parameters."""
        started = time.monotonic()
        opening = Opening(backend, path, params, draft_path, free_memory=free_memory, free_vram=free_vram, kept=kept)
        model, context, context_length = opening.open(on_progress)
        n_adapter_bytes = apply_adapters(model, context, params.adapters or ())
        shape = context.params
        parallel, n_batch, n_outputs_max = params.parallel or DEFAULT_PARALLEL, shape.n_batch, shape.n_outputs_max
        self._lookup = PromptLookup()
        self._draft_model: DraftModel | None = None
        draft = opening.open_draft(model, context)
        if draft is not None:
            self._draft_model = DraftModel(*draft, n_batch)
        self._default_drafter: Drafter | None = self._draft_model
        if params.draft_model == PROMPT_LOOKUP:
            self._default_drafter = self._lookup
        self._model, self._context, self._sink = model, context, sink
        self._shares_cores = params.threads is None
        self._grammars = Grammars(model.vocab)
        self._compiling: dict[int, SequenceSpec] = {}
        self._compiled: queue.SimpleQueue[tuple[int, Guide | LmdError]] = queue.SimpleQueue()
        self.engine = Engine(
            model,
            context,
            sink,
            context_length=context_length,
            parallel=parallel,
            n_batch=n_batch,
            n_outputs_max=n_outputs_max,
            prompt_cache=prompt_cache,
        )
        vocab = model.vocab
        self.loaded = LoadedModel(
            context_length=context_length,
            parallel=parallel,
            kv_cells=context.n_cells,
            gpu_layers=model.gpu_layers,
            n_layers=model.n_layers,
            threads=shape.n_threads,
            batch=n_batch,
            flash_attention=context.flash_attention,
            kv_cache_type=shape.cache_type,
            trained_context_length=model.trained_context_length,
            n_vocab=vocab.n_tokens,
            n_embd=model.n_embd,
            n_params=model.n_params,
            model_bytes=model.size + n_adapter_bytes,
            kv_bytes=context.kv_bytes,
            compute_bytes=context.compute_bytes,
            bos_text=vocab.text(vocab.bos),
            eos_text=vocab.text(vocab.eos),
            add_bos=vocab.add_bos,
            fim=vocab.fim,
            control_texts=vocab.control_texts(),
            load_seconds=time.monotonic() - started,
            parks=model.is_mapped and draft is None and not params.adapters,
            vram_bytes=sum(
                part.bytes_on(device.name)
                for device in backend.devices()
                if device.kind == "gpu"
                for part in (model, context, *(draft or ()))
            ),
        )

    def share_cores(self, n_busy: int) -> None:
        """``n_busy`` instances compute, this one among them: take a part of the cores only, unless ``threads`` were
        asked for. From the next step on."""
        if self._shares_cores:
            self._context.share_cores(n_busy)
            if self._draft_model is not None:
                self._draft_model.share_cores(n_busy)

    @property
    def compiling(self) -> bool:
        """Constraints are being compiled: call `collect` soon."""
        return bool(self._compiling)

    def submit(self, id: int, parts: Seq[tuple[str, bool] | list[int]], message: GenerateMessage) -> None:
        """Queue one sequence once its constraint is compiled. Raises as `Engine.encode` and `Engine.submit` do."""
        tokens, told_from = self.engine.encode(parts, add_special=message.add_special), None
        if message.prompt_logprobs:
            told_from = len(tokens) - len(self.engine.encode(parts, add_special=False))  # not a BOS put before them
        spec = SequenceSpec(
            id=id,
            tokens=tokens,
            params=message.sampling,
            logit_bias=message.logit_bias,
            logprobs=message.logprobs,
            ignore_eos=message.ignore_eos,
            cache_prompt=message.cache_prompt and not message.prompt_logprobs,
            told_from=told_from,
            preserved=self.engine.vocab.control_tokens(message.preserved),
            drafter={"auto": self._default_drafter, PROMPT_LOOKUP: self._lookup}.get(message.draft),
        )
        if message.constraint is None:
            self.engine.submit(spec)
            return
        constraint = message.constraint
        source = GrammarSource(constraint.kind, constraint.source, tuple(constraint.triggers))
        self._compiling[id] = spec
        self._grammars.compile(source, lambda guide: self._compiled.put((id, guide)))

    def embed(self, id: int, parts: Seq[tuple[str, bool] | list[int]], dimensions: int | None) -> None:
        """Unsupported: it makes no vectors."""
        raise Unsupported("This model generates text and makes no vectors.", hint="Load an embedding model for that.")

    def rerank(self, id: int, query: str, documents: Seq[str]) -> None:
        """Unsupported: it ranks nothing."""
        raise Unsupported("This model generates text and ranks nothing.", hint="Load a reranker for that.")

    def collect(self) -> None:
        """Queue the sequences whose constraints have been compiled; what fails now goes to the sink."""
        while self._compiling:
            try:
                id, guide = self._compiled.get_nowait()
            except queue.Empty:
                return
            spec = self._compiling.pop(id, None)
            if spec is None:
                continue  # cancelled meanwhile
            try:
                if isinstance(guide, LmdError):
                    raise guide
                guide.forced = spec.logprobs is None  # a token that nobody sampled has no logprob to tell
                self.engine.submit(replace(spec, guide=guide))
            except LmdError as exc:
                self._sink.failed(id, exc)

    def cancel(self, id: int) -> None:
        """As `Engine.cancel`, also while the constraint is being compiled."""
        if self._compiling.pop(id, None) is not None:
            self._sink.finished(id, FinishReason.CANCELLED, Usage(), "", None)
        else:
            self.engine.cancel(id)

    def park(self) -> Model:
        """Free everything but the model. Where `LoadedModel.parks`."""
        self._close_all_but_model()
        return self._model

    def close(self) -> None:
        """Free everything. A worker process simply ends; tests load several models in one."""
        self._close_all_but_model()
        self._model.close()

    def _close_all_but_model(self) -> None:
        self._grammars.close()
        self.engine.close()
        if self._draft_model is not None:
            self._draft_model.close()
        self._context.close()
