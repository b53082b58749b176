"""A request's hold on an instance."""

from collections.abc import Callable, Sequence

from lmd.errors import WorkerDied
from lmd.loading import LoadedModel
from lmd.pool.instance import Instance
from lmd.worker.mailbox import Mailbox
from lmd.worker.messages import Embedded, Generate, PromptText, PromptTokens, Tokens
from lmd.worker.process import Worker


class Lease:
    """Comes from `Pool.lease` or `Pool.acquire`, ends with `close`. The instance is not unloaded meanwhile, but by
    force or a crash: then everything raises Unloaded, Draining or WorkerDied."""

    def __init__(self, instance: Instance, waited: float, release: Callable[[Instance], None]) -> None:
        assert instance.loaded is not None
        self._instance = instance
        self._release = release
        self._closed = False
        self._answers: list[Mailbox] = []
        self.loaded: LoadedModel = instance.loaded
        self.waited = waited
        """Seconds that this lease waited for the instance; 0: it was loaded."""

    @property
    def instance_id(self) -> str:
        return self._instance.id

    def generate(self, request: Generate) -> Mailbox:
        """Start a sequence now; ``request.id`` is assigned here. It is cancelled when it is closed or the lease ends.

        The answer is an async iterator, `Finished` last. Cancelling an ``anext`` loses nothing.
        """
        mailbox = self._worker.generate(request)
        self._answers.append(mailbox)
        return mailbox

    async def embed(self, texts: Sequence[PromptText | PromptTokens], dimensions: int | None = None) -> Embedded:
        """One vector of length 1 for each text. Unsupported where the model makes none."""
        return await self._worker.embed(texts, dimensions)

    async def rerank(self, query: str, documents: Sequence[str]) -> Embedded:
        """One score for each document. Unsupported where the model has no head for it."""
        return await self._worker.rerank(query, documents)

    async def tokenize(self, prompt: Sequence[PromptText | PromptTokens], add_special: bool = True) -> list[int]:
        return (await self._worker.tokenize(prompt, add_special)).tokens

    async def token_pieces(self, prompt: Sequence[PromptText | PromptTokens], add_special: bool = True) -> Tokens:
        """As `tokenize`, with the bytes of each token."""
        return await self._worker.tokenize(prompt, add_special, pieces=True)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        return await self._worker.detokenize(tokens)

    @property
    def _worker(self) -> Worker:
        if self._instance.worker is None:
            raise WorkerDied(f"'{self._instance.id}' is gone.")
        return self._instance.worker

    def close(self) -> None:
        """Cancel what has not ended, and let go of the instance. Awaits nothing: whoever is cancelled while it gives
        its lease back must not keep it."""
        if self._closed:
            return
        self._closed = True
        for mailbox in self._answers:
            mailbox.close()
        self._release(self._instance)
