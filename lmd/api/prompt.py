"""From a request to what the worker is asked, and from its text back to events.

The prompt is rendered and analysed in a thread: a long conversation must not hold up other streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from lmd.errors import InvalidRequest, Unsupported
from lmd.generation import (
    ChatPrompt,
    GenerationEvent,
    GenerationRequest,
    Message,
    RawPrompt,
    Role,
    SamplingParams,
    TextDelta,
    TextPart,
    TokenLogprob,
)
from lmd.loading import PROMPT_LOOKUP
from lmd.worker.messages import Constraint, Generate, PromptText, PromptTokens

if TYPE_CHECKING:
    from lmd.api.served import Served
    from lmd.chat.dialogue import Turn
    from lmd.chat.parser import ChatParser
    from lmd.config.preset import ChatSettings
    from lmd.library.catalog import Model
    from lmd.pool.lease import Lease

_TEMPLATE_KEY = "tokenizer.chat_template"


Steps = Sequence[tuple[int, int]]
"""How long the text of each step is, and how many tokens it was."""


class Parser(Protocol):
    """Takes one choice's text apart. ``feed`` gets the text as it comes, cut anywhere."""

    @property
    def calls(self) -> int: ...

    @property
    def reasoning_tokens(self) -> int: ...

    def feed(self, text: str, steps: Steps, logprobs: Sequence[TokenLogprob] | None) -> Sequence[GenerationEvent]: ...

    def flush(self) -> Sequence[GenerationEvent]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What every choice of one request has in common."""

    generate: Callable[[int], Generate]
    """The worker's order for choice N."""
    parser: Callable[[int], Parser]
    echo: str = ""
    """The prompt, where the answer has to begin with it."""
    echo_logprobs: bool = False
    """The worker tells the prompt's tokens, which go with the echo."""
    own_stops: frozenset[str] = frozenset()
    """Stop strings of the model's format that the client did not ask for."""


async def prepare(served: Served, request: GenerationRequest, lease: Lease) -> Prepared:
    """Render, tokenize nothing: that is the worker's. TemplateError, Unsupported, InvalidRequest."""
    sampling = request.sampling.over(served.target.sampling)
    if isinstance(request.prompt, RawPrompt):
        return await _prepare_raw(request, request.prompt, sampling, lease)
    turn = await render(served, request.prompt, lease)
    asked = sampling.stop or ()
    own = tuple(stop for stop in turn.stop if stop not in asked)
    spec = turn.constraint
    order = _orders(
        request,
        replace(sampling, stop=(*asked, *own)),
        [PromptText(text, special) for text, special in turn.parts],
        preserved=list(turn.preserved),
        constraint=None if spec is None else Constraint(spec.kind, spec.source, list(spec.triggers)),
    )
    return Prepared(generate=order, parser=lambda choice: ChatAnswer(turn.parser(choice)), own_stops=frozenset(own))


async def render(served: Served, prompt: ChatPrompt, lease: Lease) -> Turn:
    """The conversation as the model's template writes it. TemplateError, Unsupported, InvalidRequest."""
    return await asyncio.to_thread(_render, served, with_system_prompt(prompt, served.target.chat), lease)


def _render(served: Served, prompt: ChatPrompt, lease: Lease) -> Turn:
    from lmd.chat.control import control_texts
    from lmd.chat.dialogue import Dialogue

    chat, loaded = served.target.chat, lease.loaded
    dialogue = Dialogue.of(templates_of(served.target.model, chat))
    args = {**chat.template_args, **prompt.template_args}
    return dialogue.prepare(
        replace(prompt, template_args=args),
        bos=loaded.bos_text,
        eos=loaded.eos_text,
        now=datetime.now().astimezone(),
        reasoning=chat.reasoning,
        inline_reasoning=chat.inline_reasoning,
        control=control_texts(loaded.control_texts),
    )


def templates_of(model: Model, chat: ChatSettings) -> Mapping[str, str]:
    """The templates to choose from, by their GGUF names; a preset's own replaces all of the model's."""
    if chat.template is not None:
        return {"chat_template": chat.template}
    return {
        key.removeprefix("tokenizer."): value
        for key, value in model.header.values.items()
        if isinstance(value, str) and (key == _TEMPLATE_KEY or key.startswith(_TEMPLATE_KEY + "."))
    }


def with_system_prompt(prompt: ChatPrompt, chat: ChatSettings) -> ChatPrompt:
    """The conversation, with the preset's system prompt where it brings none of its own."""
    if not chat.system_prompt or any(message.role in {Role.SYSTEM, Role.DEVELOPER} for message in prompt.messages):
        return prompt
    system = Message(role=Role.SYSTEM, parts=(TextPart(chat.system_prompt),))
    return replace(prompt, messages=(system, *prompt.messages))


async def _prepare_raw(
    request: GenerationRequest, prompt: RawPrompt, sampling: SamplingParams, lease: Lease
) -> Prepared:
    if prompt.tokens is not None:
        n_vocab = lease.loaded.n_vocab
        for index, token in enumerate(prompt.tokens):
            if token >= n_vocab:
                raise InvalidRequest(
                    f"Token {token} is not in the model's vocabulary of {n_vocab}.", param=f"prompt.{index}"
                )
    echo = ""
    if prompt.echo:
        echo = prompt.text if prompt.tokens is None else await lease.detokenize(prompt.tokens)
    wanted = prompt.response_format
    constraint = None if wanted.kind == "text" else Constraint(wanted.kind, str(wanted.source))
    if prompt.suffix:
        pieces = _filled_in(prompt, lease)
        return Prepared(generate=_orders(request, sampling, pieces, constraint=constraint), parser=PlainAnswer)
    pieces = [PromptText(prompt.text)] if prompt.tokens is None else [PromptTokens(list(prompt.tokens))]
    echo_logprobs = prompt.echo and request.logprobs is not None
    order = _orders(
        request,
        sampling,
        pieces,
        add_special=prompt.tokens is None,  # token ids are the whole prompt, as the client counted it
        constraint=constraint,
        prompt_logprobs=echo_logprobs,
    )
    return Prepared(generate=order, parser=PlainAnswer, echo=echo, echo_logprobs=echo_logprobs)


def _filled_in(prompt: RawPrompt, lease: Lease) -> list[PromptText | PromptTokens]:
    """The prompt for the text between ``prompt.text`` and its suffix, in the order that most models were trained on."""
    fim = lease.loaded.fim
    if fim is None:
        raise Unsupported(
            "This model was not trained to fill in: its vocabulary has no tokens for it.",
            hint="Leave 'suffix' out, or choose a code model.",
            param="suffix",
        )
    if prompt.echo or prompt.tokens is not None:
        raise Unsupported("'suffix' goes with a text prompt and without 'echo'.", param="suffix")
    before, after, middle = fim
    return [
        PromptTokens([before]),
        PromptText(prompt.text, special=False),
        PromptTokens([after]),
        PromptText(prompt.suffix or "", special=False),
        PromptTokens([middle]),
    ]


def _orders(
    request: GenerationRequest,
    sampling: SamplingParams,
    pieces: list[PromptText | PromptTokens],
    *,
    add_special: bool = True,
    preserved: Sequence[str] = (),
    constraint: Constraint | None = None,
    prompt_logprobs: bool = False,
) -> Callable[[int], Generate]:
    logprobs = request.logprobs
    if logprobs is None and request.best_of is not None and request.best_of > request.n:
        logprobs = 0  # they decide which are the best

    def order(choice: int) -> Generate:
        seed = sampling.seed
        if seed is not None and seed >= 0:
            seed = (seed + choice) % 2**32  # the choices of one request differ, and do so the same way each time
        return Generate(
            id=0,  # the pool's to assign
            prompt=pieces,
            sampling=replace(sampling, seed=seed),
            add_special=add_special,
            logit_bias=dict(request.logit_bias),
            logprobs=logprobs,
            ignore_eos=request.ignore_eos,
            cache_prompt=request.cache_prompt,
            preserved=list(preserved),
            constraint=constraint,
            draft=PROMPT_LOOKUP if request.draft_model == PROMPT_LOOKUP else "auto",
            prompt_logprobs=prompt_logprobs,
        )

    return order


class PlainAnswer:
    """A completion's text is the answer."""

    calls = 0
    reasoning_tokens = 0

    def __init__(self, choice: int) -> None:
        self._choice = choice
        self._logprobs: list[TokenLogprob] = []

    def feed(self, text: str, steps: Steps, logprobs: Sequence[TokenLogprob] | None) -> Sequence[GenerationEvent]:
        if logprobs:
            self._logprobs.extend(logprobs)
        if not text:
            return ()
        told, self._logprobs = tuple(self._logprobs), []
        return (TextDelta(text, self._choice, told),)

    def flush(self) -> Sequence[GenerationEvent]:
        """Tokens that gave no text by themselves (half a character) are told with an empty piece."""
        if not self._logprobs:
            return ()
        return (TextDelta("", self._choice, tuple(self._logprobs)),)


class ChatAnswer:
    """A chat's text goes through its format's parser. Log probabilities ride on the text that they belong to."""

    def __init__(self, parser: ChatParser) -> None:
        self._parser = parser
        self._logprobs: list[TokenLogprob] = []

    @property
    def calls(self) -> int:
        return self._parser.calls

    @property
    def reasoning_tokens(self) -> int:
        return self._parser.reasoning_tokens

    def feed(self, text: str, steps: Steps, logprobs: Sequence[TokenLogprob] | None) -> Sequence[GenerationEvent]:
        if logprobs:
            self._logprobs.extend(logprobs)
        return self._told(self._parser.feed(text, steps))

    def flush(self) -> Sequence[GenerationEvent]:
        return self._told(self._parser.flush())

    def _told(self, events: Sequence[GenerationEvent]) -> Sequence[GenerationEvent]:
        if not self._logprobs or not events:
            return events
        told: list[GenerationEvent] = []
        for event in events:
            if isinstance(event, TextDelta) and self._logprobs:
                event = replace(event, logprobs=tuple(self._logprobs))  # noqa: PLW2901 -- the same event
            # Tokens of reasoning and of tool calls are not part of the message's content.
            self._logprobs = []
            told.append(event)
        return told
