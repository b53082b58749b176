"""OpenAI bodies to `GenerationRequest`. Pure: bytes in, values out, InvalidRequest on what cannot be served."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from lmd.api.body import read_body
from lmd.api.completions import body as wire
from lmd.api.data_url import image_of
from lmd.api.ttl import ttl_of
from lmd.api.unsupported import refuse_unsupported
from lmd.errors import InvalidRequest
from lmd.generation import (
    ChatPrompt,
    GenerationRequest,
    Message,
    Part,
    RawPrompt,
    ResponseFormat,
    Role,
    SamplingParams,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
)

_MAX_INT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Decoded:
    """A body: what to generate (a completion with several prompts is several requests) and how to answer."""

    requests: tuple[GenerationRequest, ...]
    stream: bool
    include_usage: bool
    """Only for a stream; a whole answer always has its usage."""

    @property
    def model(self) -> str:
        return self.requests[0].model


def decode_chat(raw: bytes) -> Decoded:
    said = read_body(wire.ChatBody, raw)
    if said.top_logprobs is not None and not said.logprobs:
        raise InvalidRequest("'top_logprobs' needs 'logprobs' to be true.", param="top_logprobs")
    limit = said.max_completion_tokens if said.max_completion_tokens is not None else said.max_tokens
    prompt = ChatPrompt(
        messages=tuple(_message(message, index) for index, message in enumerate(said.messages)),
        tools=tuple(_tool(tool) for tool in said.tools or ()),
        tool_choice=_tool_choice(said),
        parallel_tool_calls=said.parallel_tool_calls is not False,
        response_format=_response_format(said),
        reasoning_effort=said.reasoning_effort,
        template_args=dict(said.chat_template_kwargs or {}),
    )
    request = GenerationRequest(
        model=said.model,
        prompt=prompt,
        sampling=_sampling(
            said, limit, "max_completion_tokens" if said.max_completion_tokens is not None else "max_tokens"
        ),
        preset=said.preset,
        draft_model=said.draft_model,
        ttl=ttl_of(said.ttl),
        n=said.n or 1,
        logprobs=(said.top_logprobs or 0) if said.logprobs else None,
        logit_bias=_logit_bias(said.logit_bias),
        ignore_eos=bool(said.ignore_eos),
        cache_prompt=said.cache_prompt is not False,
    )
    refuse_unsupported(request)
    return Decoded((request,), bool(said.stream), _include_usage(said))


def decode_completion(raw: bytes) -> Decoded:
    said = read_body(wire.CompletionBody, raw)
    n = said.n or 1
    best_of = said.best_of if said.best_of is not None else n
    if best_of < n:
        raise InvalidRequest(f"'best_of' ({best_of}) must be at least n ({n}).", param="best_of")
    if best_of > n and said.stream:
        message = "The best of several answers cannot be streamed."
        raise InvalidRequest(message, hint="Leave 'stream' out.", param="best_of")
    prompts = _prompts(said)
    if len(prompts) * best_of > wire.MAX_CHOICES:
        raise InvalidRequest(
            f"{len(prompts)} prompts with {best_of} answers each are more than {wire.MAX_CHOICES} choices.",
            hint="Send fewer prompts at a time.",
            param="prompt",
        )
    requests = tuple(
        GenerationRequest(
            model=said.model,
            prompt=prompt,
            sampling=_sampling(said, said.max_tokens, "max_tokens", echo=bool(said.echo)),
            preset=said.preset,
            draft_model=said.draft_model,
            ttl=ttl_of(said.ttl),
            n=n,
            best_of=best_of if best_of > n else None,
            logprobs=said.logprobs,
            logit_bias=_logit_bias(said.logit_bias),
            ignore_eos=bool(said.ignore_eos),
            cache_prompt=said.cache_prompt is not False,
        )
        for prompt in prompts
    )
    return Decoded(requests, bool(said.stream), _include_usage(said))


# ── parts of a body ───────────────────────────────────────────────────────────────────────────


def _include_usage(said: wire.Sampled) -> bool:
    if said.stream_options is None:
        return False
    if not said.stream:
        raise InvalidRequest("'stream_options' needs 'stream' to be true.", param="stream_options")
    return bool(said.stream_options.include_usage)


def _sampling(said: wire.Sampled, limit: int | None, limit_name: str, *, echo: bool = False) -> SamplingParams:
    if limit == 0 and not echo:
        raise InvalidRequest(
            f"'{limit_name}' is 0, so there is nothing to generate.",
            hint="Ask for at least 1 token, or for -1: no limit.",
            param=limit_name,
        )
    stop = said.stop
    return SamplingParams(
        temperature=said.temperature,
        # 0 keeps the likeliest token alone, as any value below its probability does.
        top_p=None if said.top_p is None else max(said.top_p, 1e-9),
        top_k=said.top_k,
        min_p=said.min_p,
        repeat_penalty=said.repeat_penalty,
        presence_penalty=said.presence_penalty,
        frequency_penalty=said.frequency_penalty,
        # Any integer is a seed; the sign keeps its meaning ("a new one"), the rest wraps to what llama.cpp takes.
        seed=None if said.seed is None else said.seed % 2**32 if said.seed >= 0 else -1,
        max_tokens=None if limit is None else min(limit, _MAX_INT),
        stop=None if stop is None else _stops(stop),
        dry_sequence_breakers=None if said.dry_sequence_breakers is None else tuple(said.dry_sequence_breakers),
        **{name: getattr(said, name) for name in wire.FURTHER_SAMPLING},
    )


def _stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    if isinstance(stop, str):
        return (stop,) if stop else ()
    return tuple(stop)


def _logit_bias(said: dict[str, float] | None) -> dict[int, float]:
    bias: dict[int, float] = {}
    for token, value in (said or {}).items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10 and int(token) <= _MAX_INT):
            raise InvalidRequest(f"'{token[:32]}' is not a token id.", param="logit_bias")
        bias[int(token)] = value
    return bias


def _prompts(said: wire.CompletionBody) -> list[RawPrompt]:
    prompt = said.prompt
    plain = RawPrompt(suffix=said.suffix, echo=bool(said.echo), response_format=_grammar(said) or ResponseFormat())
    if isinstance(prompt, str):
        return [replace(plain, text=prompt)]
    if isinstance(prompt[0], int):
        return [replace(plain, tokens=_tokens(prompt))]
    return [replace(plain, text=one) if isinstance(one, str) else replace(plain, tokens=_tokens(one)) for one in prompt]


def _tokens(said: Sequence[object]) -> tuple[int, ...]:
    return tuple(token for token in said if isinstance(token, int))


def _message(said: wire.ChatMessage, index: int) -> Message:
    where = f"messages.{index}"
    if said.content is None and not (said.role == "assistant" and (said.tool_calls or said.reasoning_content)):
        raise InvalidRequest(f"'{where}.content' is missing.", param=f"{where}.content")
    if said.tool_calls and said.role != "assistant":
        raise InvalidRequest(f"A {said.role} message cannot make tool calls.", param=f"{where}.tool_calls")
    return Message(
        role=Role(said.role),
        parts=_parts(said.content, where),
        name=said.name,
        reasoning=said.reasoning_content,
        tool_calls=tuple(
            ToolCall(
                id=call.id or f"call_{index}_{number}",
                name=call.function.name,
                arguments=_arguments(call.function.arguments, f"{where}.tool_calls.{number}.function.arguments"),
            )
            for number, call in enumerate(said.tool_calls or ())
        ),
        tool_call_id=said.tool_call_id,
    )


def _arguments(text: str, param: str) -> str:
    text = text.strip() or "{}"
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequest(f"'{param}' is not JSON: {error}.", param=param) from None
    return text


def _parts(content: str | list[wire.Content] | None, where: str) -> tuple[Part, ...]:
    if content is None:
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    parts: list[Part] = []
    for index, part in enumerate(content):
        match part:
            case wire.TextContent(text=text) | wire.RefusalContent(refusal=text):
                parts.append(TextPart(text))
            case wire.ImageContent(image_url=image):
                parts.append(image_of(image.url, f"{where}.content.{index}.image_url.url"))
    return tuple(parts)


def _tool(said: wire.FunctionTool) -> Tool:
    function = said.function
    return Tool(
        name=function.name,
        description=function.description or "",
        parameters=function.parameters,
        strict=bool(function.strict),
    )


def _tool_choice(said: wire.ChatBody) -> ToolChoice:
    choice = said.tool_choice
    if choice is None or choice == "auto":
        return ToolChoice()
    if choice == "none":
        return ToolChoice("none")
    if not said.tools:
        raise InvalidRequest("'tool_choice' asks for a call, but there are no 'tools'.", param="tool_choice")
    if isinstance(choice, str):
        return ToolChoice("required")
    name = choice.function.name
    if all(tool.function.name != name for tool in said.tools):
        raise InvalidRequest(f"'tool_choice' names '{name}', which is not in 'tools'.", param="tool_choice")
    return ToolChoice("named", name)


def _grammar(said: wire.Sampled) -> ResponseFormat | None:
    """What the answer has to follow, said beyond OpenAI's fields: GBNF, Lark, or a regex."""
    if said.grammar is not None and said.regex is not None:
        raise InvalidRequest("'grammar' and 'regex' cannot both say what the answer is.", param="regex")
    if said.regex is not None:
        return ResponseFormat(kind="regex", source=said.regex)
    return None if said.grammar is None else ResponseFormat(kind="gbnf", source=said.grammar)


def _response_format(said: wire.ChatBody) -> ResponseFormat:
    wanted = said.response_format
    if (grammar := _grammar(said)) is not None:
        if wanted is not None and not isinstance(wanted, wire.TextFormat):
            field = "regex" if grammar.kind == "regex" else "grammar"
            raise InvalidRequest(f"'{field}' and 'response_format' cannot both say what the answer is.", param=field)
        return grammar
    if wanted is None or isinstance(wanted, wire.TextFormat):
        return ResponseFormat()
    if isinstance(wanted, wire.JsonObjectFormat):
        return ResponseFormat(kind="json_object")
    schema = wanted.json_schema
    return ResponseFormat(kind="json_schema", source=schema.schema_ or {}, strict=bool(schema.strict))
