"""The texts that the tiny models learn: fixed by their seed, and in the very format that the template writes."""

import hashlib
import json
import re
from itertools import islice
from random import Random

from tests.models.dialogues import GET_WEATHER, KINDS, Dialogue, Turn, draw_dialogue
from tests.models.examples import draw_example, make_example

CALL = re.compile(r"<tool_call>\n(.*?)\n</tool_call>", re.DOTALL)


def test_a_seed_always_draws_the_same_examples() -> None:
    rng = Random(42)
    text = "".join(draw_example(rng).text for _ in range(1000))
    # The bundled models were trained on these: a change of the draws' order changes the recipe.
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "bc5923716e2a9811dce3ebc0818f8b8c069a0b4d1521d22780cd5a7775e90846"
    )


def test_every_dialogue_ends_with_the_assistant_and_calls_only_tools_that_it_was_offered() -> None:
    rng = Random(1)
    for _ in range(2000):
        dialogue = draw_dialogue(rng)
        assert dialogue.turns[-1].role == "assistant"
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in dialogue.tools or ()}
        for turn in dialogue.turns:
            for name, arguments in turn.calls:
                assert set(arguments) == set(offered[name]["required"])


def test_every_kind_is_drawn() -> None:
    drawn = {kind.__name__: kind(Random(0)) for kind, _ in KINDS}
    assert len(drawn) == 12
    assert all(dialogue.turns for dialogue in drawn.values())


def test_calls_in_answers_are_json_and_examples_end_the_turn() -> None:
    rng = Random(2)
    for example in islice(iter(lambda: draw_example(rng), None), 500):
        assert example.answer.endswith("<|im_end|>")
        for call in CALL.findall(example.answer):
            assert set(json.loads(call)) == {"name", "arguments"}


def test_thinking_is_opened_by_the_prompt_and_closed_by_the_answer() -> None:
    dialogue = Dialogue([Turn(role="user", content="Hi"), Turn(role="assistant", content="Hello!", thought="Greet.")])
    example = make_example(dialogue, thinking=True)
    assert example.prompt == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n"
    assert example.answer == "Greet.\n</think>\n\nHello!<|im_end|>"


def test_parallel_calls_are_written_one_block_each() -> None:
    calls = (("get_weather", {"city": "Rome"}), ("get_weather", {"city": "Oslo"}))
    turns = [Turn(role="user", content="Weather?"), Turn(role="assistant", calls=calls)]
    example = make_example(Dialogue(turns, [GET_WEATHER]), thinking=False)
    assert "<tools>\n" in example.prompt
    assert CALL.findall(example.answer) == [
        '{"name": "get_weather", "arguments": {"city": "Rome"}}',
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}',
    ]
