"""Dialogues as text to learn from: the model's own chat template up to the last turn, then what it should write."""

import json
from dataclasses import dataclass
from pathlib import Path
from random import Random

from jinja2.sandbox import ImmutableSandboxedEnvironment

from tests.models.dialogues import Dialogue, Turn, draw_dialogue

CHAT_TEMPLATE = Path(__file__).with_name("template.jinja").read_text()

_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
_environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
_template = _environment.from_string(CHAT_TEMPLATE)


@dataclass(frozen=True, slots=True)
class Example:
    """``prompt`` ends where the model begins to write; ``answer`` is all that it should write, end token included."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        return self.prompt + self.answer


def draw_example(rng: Random) -> Example:
    """The next dialogue of ``rng``, in a fifth of the cases with thinking on."""
    dialogue = draw_dialogue(rng)
    return make_example(dialogue, thinking=rng.random() < 0.2)


def make_example(dialogue: Dialogue, *, thinking: bool) -> Example:
    """``dialogue`` rendered; with ``thinking`` the prompt opens a thought and the answer closes it."""
    *earlier, last = dialogue.turns
    prompt = _template.render(
        messages=[turn.as_message() for turn in earlier],
        tools=dialogue.tools,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    answer = "\n".join(filter(None, [last.content, *map(_tool_call, last.calls)]))
    if thinking:
        answer = f"{_thought(last)}\n</think>\n\n{answer}"
    return Example(prompt, answer + "<|im_end|>")


def _tool_call(call: tuple[str, object]) -> str:
    name, arguments = call
    return f'<tool_call>\n{{"name": "{name}", "arguments": {json.dumps(arguments)}}}\n</tool_call>'


def _thought(turn: Turn) -> str:
    if turn.thought:
        return turn.thought
    return f"I should call {turn.calls[0][0]}." if turn.calls else "The user wants a short answer."
