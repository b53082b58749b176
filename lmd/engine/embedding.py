"""Texts to vectors: the engine of an embedding model or a reranker.

As with `lmd.engine.engine`, one thread owns it and calls `EmbeddingEngine.step` while it is busy. A step computes
one batch of whole texts, taken from all the requests that wait; a request is answered when its last text is done.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lmd.engine.batch import Batch
from lmd.engine.context import ComputeParams
from lmd.engine.encoder import EncoderContext, PairTemplate, Vectors, apply_adapters, with_special
from lmd.engine.llama import Backend, Model
from lmd.engine.rate import Rate
from lmd.engine.threads import default_threads
from lmd.engine.vocabulary import Vocab
from lmd.errors import ContextLengthExceeded, InsufficientMemory, InvalidRequest, LmdError, Unsupported
from lmd.loading import DEFAULT_TEXT_LENGTH, LoadedModel, LoadParams

DEFAULT_BATCH = 512
CPU_BATCH = 256
"""On CPUs more makes it slower: every token of a batch is held against every other, also of other texts, and masked.
Measured on MiniLM's shape with texts of 64 tokens, texts per CPU second: 27.3 at 128, 26.7 at 256, 24.3 at 512."""
DEFAULT_PARALLEL = 64
MAX_PARALLEL = 256
"""LLAMA_MAX_SEQ."""
OUTPUT_BYTES = 256 * 2**20
"""llama.cpp keeps room for the logits of every token of a batch, although encoders have none: with a vocabulary of
250,000 that is a megabyte for each token. The usual batch is made smaller than what would take more than this."""
LEAST_TEXT = 512
"""Where memory is short and no context_length is asked for, texts of so many tokens must fit."""

Part = tuple[str, bool] | list[int]
"""A piece of text (and whether control tokens in it count), or ready token ids."""


class Answers(Protocol):
    """Where results go. Called from within `EmbeddingEngine.step` and `cancel`."""

    def embedded(self, id: int, width: int, data: bytes, n_tokens: int) -> None: ...
    def failed(self, id: int, error: LmdError) -> None: ...


def pack(waiting: Sequence[Sequence[int]], budget: int, n_sequences: int) -> list[int]:
    """How many texts of each request go into the next batch, given the lengths of those that wait, oldest first.

    Requests take turns, one text at a time, until ``budget`` tokens or ``n_sequences`` texts are reached, so that a
    small request does not wait behind a large one. The oldest request's next text always goes, however long it is.
    """
    taken = [0] * len(waiting)
    left, places = budget, n_sequences
    open_ = [index for index, lengths in enumerate(waiting) if lengths]
    first = True
    while open_ and places > 0:
        still = []
        for index in open_:
            length = waiting[index][taken[index]]
            if places <= 0 or (length > left and not first):
                continue
            first = False
            taken[index] += 1
            left -= length
            places -= 1
            if taken[index] < len(waiting[index]):
                still.append(index)
        open_ = still
    return taken


def normalised(vectors: Vectors, dimensions: int | None) -> Vectors:
    """Each vector cut to its first ``dimensions`` components and scaled to length 1; one of zeros stays."""
    kept = vectors[:, :dimensions]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    scaled: Vectors = np.divide(kept, lengths, out=np.zeros_like(kept), where=lengths > 0)
    return scaled


@dataclass(slots=True, eq=False)
class Job:
    """One request. ``texts[n_done:]`` are still to be computed."""

    id: int
    texts: list[list[int]]
    vectors: Vectors
    dimensions: int | None
    n_done: int = 0

    def next_lengths(self, n: int) -> list[int]:
        return [len(text) for text in self.texts[self.n_done : self.n_done + n]]


class EmbeddingEngine:
    """Batches whole texts of up to ``context_length`` tokens over one context."""

    def __init__(
        self,
        vocab: Vocab,
        context: EncoderContext,
        answers: Answers,
        *,
        context_length: int,
        budget: int,
        n_sequences: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.vocab = vocab
        self.context_length = context_length
        self._context = context
        self._answers = answers
        self._budget = budget
        self._n_sequences = n_sequences
        self._clock = clock
        self._batch = Batch(max(budget, context_length))
        self._jobs: list[Job] = []
        self.prompt_rate, self.decode_rate = Rate(), Rate()
        self.n_prompted = self.n_reused = 0
        self.n_queued = self.n_cells_used = 0  # every request takes part in the next batch, and nothing is kept

    @property
    def busy(self) -> bool:
        return bool(self._jobs)

    @property
    def n_running(self) -> int:
        """Requests that are not answered yet."""
        return len(self._jobs)

    def encode(self, parts: Sequence[Part], *, add_special: bool) -> list[int]:
        """Token ids of a prompt; with ``add_special``, text that stands alone gets the special tokens around it."""
        tokens: list[int] = []
        for part in parts:
            if isinstance(part, list):
                self._check(part, "input")
                tokens += part
            elif add_special and len(parts) == 1:
                tokens = with_special(self.vocab, part[0], special=part[1])
            else:
                tokens += self.vocab.tokenize(part[0], special=part[1])
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ``tokens``, control tokens written out."""
        self._check(tokens, "tokens")
        return b"".join(map(self.vocab.special_piece, tokens)).decode("utf-8", "replace")

    def _check(self, tokens: Iterable[int], param: str) -> None:
        wrong = next((token for token in tokens if not 0 <= token < self.vocab.n_tokens), None)
        if wrong is not None:
            raise InvalidRequest(f"Token {wrong} is not in this model's vocabulary.", param=param)

    def submit(self, id: int, texts: list[list[int]], dimensions: int | None = None) -> None:
        """Queue a request. Raises InvalidRequest or ContextLengthExceeded; then nothing was queued."""
        for index, text in enumerate(texts):
            if not text:
                raise InvalidRequest(f"Text {index} is empty.", param=f"input.{index}")
            if len(text) > self.context_length:
                raise ContextLengthExceeded(len(text), self.context_length)
            self._check(text, f"input.{index}")
        width = self._context.width
        if dimensions is not None and not 0 < dimensions <= width:
            raise InvalidRequest(f"This model's vectors have {width} dimensions.", param="dimensions")
        if not texts:
            raise InvalidRequest("There is no text.", param="input")
        self._jobs.append(Job(id, texts, np.empty((len(texts), width), np.float32), dimensions))

    def cancel(self, id: int) -> None:
        """Forget request ``id`` and what of it is not computed. Unknown ids are ignored."""
        for job in self._jobs:
            if job.id == id:
                self._jobs.remove(job)
                self._answers.failed(id, LmdError("The request was cancelled."))
                return

    def step(self) -> None:
        """Compute one batch and answer the requests that it completes."""
        if not self._jobs:
            return
        shares = pack([job.next_lengths(self._n_sequences) for job in self._jobs], self._budget, self._n_sequences)
        self._batch.clear()
        rows: list[tuple[Job, int]] = []
        for job, n in zip(self._jobs, shares, strict=True):
            for index in range(job.n_done, job.n_done + n):
                text = job.texts[index]
                self._batch.add(text, 0, len(rows), len(text))
                rows.append((job, index))
        started = self._clock()
        vectors = self._context.compute(self._batch, len(rows))
        self.prompt_rate.add(self._batch.n, self._clock() - started)
        for vector, (job, index) in zip(vectors, rows, strict=True):
            job.vectors[index] = vector
            job.n_done = index + 1
        for job in [job for job in self._jobs if job.n_done == len(job.texts)]:
            self._jobs.remove(job)
            self._answer(job)

    def _answer(self, job: Job) -> None:
        ranks = self._context.pooling == "rank"
        vectors = job.vectors[:, :1] if ranks else normalised(job.vectors, job.dimensions)
        data = np.ascontiguousarray(vectors, "<f4").tobytes()
        self._answers.embedded(job.id, vectors.shape[1], data, sum(map(len, job.texts)))

    def close(self) -> None:
        self._batch.close()


class EmbeddingInstance:
    """A loaded embedding model or reranker. Loads on construction, telling progress 0..1.

    Raises LoadFailed, InsufficientMemory, Unsupported.
    """

    def __init__(
        self,
        backend: Backend,
        path: str,
        params: LoadParams,
        answers: Answers,
        *,
        free_memory: int = 0,
        on_progress: Callable[[float], None] | None = None,
    ) -> None:
        started = time.monotonic()
        layers = params.gpu_layers if isinstance(params.gpu_layers, int) else None
        model = Model(backend, path, params, on_progress, gpu_layers=layers)
        vocab = model.vocab
        length = text_length(model, params, free_memory)
        most = OUTPUT_BYTES // (4 * max(1, vocab.n_tokens))
        budget = params.batch or min(DEFAULT_BATCH if model.gpu_layers else CPU_BATCH, max(64, most))
        parallel = min(params.parallel or DEFAULT_PARALLEL, MAX_PARALLEL)
        threads = params.threads or default_threads()
        context = EncoderContext(
            model,
            ComputeParams(
                n_batch=max(budget, length),
                n_seq_max=parallel,
                n_threads=threads,
                flash_attention="auto" if params.flash_attention is None else params.flash_attention,
                rope_freq_base=params.rope_freq_base or 0.0,
                rope_freq_scale=params.rope_freq_scale or 0.0,
            ),
        )
        n_adapter_bytes = apply_adapters(model, context, params.adapters or ())
        self._model, self._context = model, context
        self._shares_cores = params.threads is None
        self._pairs = PairTemplate(model) if context.pooling == "rank" else None
        self.engine = EmbeddingEngine(
            vocab, context, answers, context_length=length, budget=budget, n_sequences=parallel
        )
        self.loaded = LoadedModel(
            context_length=length,
            parallel=parallel,
            kv_cells=context.n_cells,
            gpu_layers=model.gpu_layers,
            n_layers=model.n_layers,
            threads=threads,
            batch=budget,
            flash_attention=context.flash_attention,
            kv_cache_type="f16",
            trained_context_length=model.trained_context_length,
            n_vocab=vocab.n_tokens,
            n_embd=model.n_embd,
            n_params=model.n_params,
            model_bytes=model.size + n_adapter_bytes,
            kv_bytes=context.kv_bytes,
            # The outputs' room grows with the first batch from one row for each text to one for each token.
            compute_bytes=context.compute_bytes + 4 * vocab.n_tokens * max(0, budget - parallel),
            bos_text=vocab.text(vocab.bos),
            eos_text=vocab.text(vocab.eos),
            add_bos=vocab.add_bos,
            load_seconds=time.monotonic() - started,
            pooling=context.pooling,
            n_vector=1 if context.pooling == "rank" else context.width,
            vram_bytes=sum(
                model.bytes_on(device.name) + context.bytes_on(device.name)
                for device in backend.devices()
                if device.kind == "gpu"
            ),
        )

    def share_cores(self, n_busy: int) -> None:
        """As `lmd.engine.instance.EngineInstance.share_cores`."""
        if self._shares_cores:
            self._context.share_cores(n_busy)

    def embed(self, id: int, parts: Sequence[Part], dimensions: int | None) -> None:
        """Queue the texts of one request. Raises as `EmbeddingEngine.submit` does; Unsupported for a reranker."""
        if self._pairs is not None:
            raise Unsupported("This model ranks documents; it makes no vectors.", hint="Ask it at /v1/rerank.")
        texts = [part if isinstance(part, list) else self.engine.encode([part], add_special=True) for part in parts]
        self.engine.submit(id, texts, dimensions)

    def rerank(self, id: int, query: str, documents: Sequence[str]) -> None:
        """Queue a query with its documents. Raises as `embed` does; Unsupported for a model without the head."""
        if self._pairs is None:
            raise Unsupported("This model has no head that ranks documents.", hint="Ask it at /v1/embeddings.")
        self.engine.submit(id, self._pairs.tokens(query, documents))

    def submit(self, id: int, parts: Sequence[Part], message: object) -> None:
        """Unsupported: it generates nothing."""
        raise Unsupported("This model encodes text and generates none.", hint="Ask it at /v1/embeddings.")

    compiling = False

    def collect(self) -> None:
        """Nothing: there are no constraints to compile (see `lmd.engine.instance`)."""

    def cancel(self, id: int) -> None:
        self.engine.cancel(id)

    def close(self) -> None:
        """Free everything. A worker process simply ends; tests load several models in one."""
        self.engine.close()
        self._context.close()
        self._model.close()


def text_length(model: Model, params: LoadParams, free_memory: int) -> int:
    """The longest text that a load serves: what was asked for, else as long as memory (bytes; 0: unknown) allows.

    Never more than the model was trained for: many have no positions beyond. Raises InsufficientMemory.
    """
    trained = model.trained_context_length or DEFAULT_TEXT_LENGTH
    length = min(params.context_length or DEFAULT_TEXT_LENGTH, trained)
    if not free_memory:
        return length
    room = free_memory - model.size
    least = length if params.context_length else min(length, LEAST_TEXT)
    while compute_bytes(model, length) > room and length > least:
        length = max(least, length // 2)
    if compute_bytes(model, length) > room:
        raise InsufficientMemory(
            f"Texts of {length} tokens need {compute_bytes(model, length) / 2**20:.0f} MiB beside the model; "
            f"{max(0, room) / 2**20:.0f} MiB are free.",
            hint="Load with a smaller --context-length, or unload another model.",
        )
    return length


def compute_bytes(model: Model, n_tokens: int) -> int:
    """About what computing so many tokens at once takes: activations, the mask, and the logits' room."""
    return n_tokens * (32 * model.n_embd + 6 * n_tokens + 4 * model.vocab.n_tokens)
