import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmd.engine.grammar import Guide
from lmd.errors import InvalidRequest
from lmd.generation import FinishReason
from lmd.worker.messages import Constraint
from tests.lmd.engine.driver import Answer, Driver, chat

Make = Callable[..., Driver]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "city": {"enum": ["Lima", "Oslo"]},
    },
    "required": ["name", "age", "city"],
    "additionalProperties": False,
}


def ask(driver: Driver, question: str, kind: str, source: str, triggers: list[str] | None = None, **kw: Any) -> Answer:
    raw = {"constraint": Constraint(kind, source, triggers or []), **kw.pop("raw", {})}
    return driver.ask(chat(question), raw=raw, **kw)


def test_json_follows_its_schema_whatever_was_asked(driver: Driver) -> None:
    answer = ask(driver, "Tell me a story about Emma in Rome.", "json_schema", json.dumps(PERSON))
    value = json.loads(answer.text)
    assert set(value) == {"name", "age", "city"}
    assert value["city"] in ("Lima", "Oslo")
    assert answer.reason is FinishReason.EOG


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**31))
def test_json_is_valid_at_any_temperature(driver: Driver, seed: int) -> None:
    answer = ask(driver, "Hello", "json_schema", json.dumps(PERSON), temperature=2.0, seed=seed)
    assert set(json.loads(answer.text)) == {"name", "age", "city"}


@pytest.mark.parametrize(
    ("kind", "source", "expected"),
    [
        ("regex", "(yes|no), said [0-9]{3}", None),
        ("lark", 'start: "colour: " COLOUR\nCOLOUR: "red" | "green"', None),
        ("gbnf", 'root ::= "colour: " ("red" | "green")', None),
        ("lark", 'start: "exactly this, nothing else"', "exactly this, nothing else"),
    ],
)
def test_every_kind_of_grammar_is_enforced(driver: Driver, kind: str, source: str, expected: str | None) -> None:
    import re

    answer = ask(driver, "Hello", kind, source)
    if expected is None:
        assert re.fullmatch("(yes|no), said [0-9]{3}|colour: (red|green)", answer.text)
    else:
        assert answer.text == expected


def test_forced_tokens_take_fewer_steps_and_give_the_same_text(driver: Driver, monkeypatch: Any) -> None:
    def steps() -> tuple[str, int]:
        id = driver.submit(chat("Hello"), raw={"constraint": Constraint("json_schema", json.dumps(PERSON))})
        n = 0
        while driver.engine.busy or driver.instance.compiling:
            driver.instance.collect()
            if driver.engine.busy:
                driver.engine.step()
                n += 1
        return driver.sink.of(id).text, n

    fast, few = steps()
    monkeypatch.setattr(Guide, "_follow", lambda self: [])
    slow, many = steps()
    assert json.loads(fast) == json.loads(slow)
    assert few < many


def test_forced_tokens_beside_other_streams_cost_no_further_pass_over_the_weights(make: Make) -> None:
    driver = make(context_length=512, parallel=2)
    alone = ask(driver, "Hello", "json_schema", json.dumps(PERSON)).text
    driver.submit(chat("Count to 40."), raw={"ignore_eos": True})
    driver.engine.step()
    id = driver.submit(chat("Hello"), raw={"constraint": Constraint("json_schema", json.dumps(PERSON), [])})
    while driver.instance.compiling:
        driver.instance.collect()
    driver.engine.step()
    driver.engine.step()
    while driver.sink.of(id).reason is None:
        driver.engine.step()
        assert driver.engine._batch.n == 2
    assert driver.sink.of(id).text == alone


def test_a_lazy_constraint_leaves_text_free_until_its_trigger(driver: Driver) -> None:
    source = 'start: "7, " "and that is all."'
    answer = ask(driver, "Count to 20.", "lark", source, ["7,"])
    assert answer.text == "1, 2, 3, 4, 5, 6, 7, and that is all."
    untouched = ask(driver, "Count to 5.", "lark", source, ["7,"])
    assert untouched.text == "1, 2, 3, 4, 5."


def test_a_trigger_in_the_middle_of_a_token_counts(driver: Driver) -> None:
    # The model writes "Hello" as one token: the trigger is its end, and the constraint begins there.
    answer = ask(driver, "Hello", "lark", 'start: "lo" " there"', ["lo"])
    assert answer.text == "Hello there"


def test_a_special_token_can_be_demanded_by_name(driver: Driver) -> None:
    answer = ask(driver, "Hello", "lark", 'start: <tool_call> "\\n" %json {"type": "boolean"} "\\n" </tool_call>')
    assert answer.text in ("<tool_call>\ntrue\n</tool_call>", "<tool_call>\nfalse\n</tool_call>")


def test_markers_are_tokens_where_the_vocabulary_has_them_and_text_where_not(driver: Driver) -> None:
    answer = ask(driver, "Hello", "lark", 'start: %%"<tool_call>"%% "a" %%"[ARGS]"%% "b" %%"</tool_call>"%%')
    assert answer.text == "<tool_call>a[ARGS]b</tool_call>"
    assert ask(driver, "Hello", "lark", 'start: %%until "?"%% " Yes."').text == "Hello! How can I help you? Yes."


def test_a_grammar_that_cannot_be_read_is_refused_before_any_token(driver: Driver) -> None:
    for kind, source in [
        ("json_schema", "{"),
        ("json_schema", '{"type": "nonsense"}'),
        ("lark", "start: nowhere"),
        ("gbnf", "root ::= ("),
        ("regex", "("),
        ("prose", "please"),
    ]:
        answer = ask(driver, "Hello", kind, source)
        assert isinstance(answer.error, InvalidRequest), (kind, source)
        assert not answer.pieces
    assert driver.ask(chat("Hello")).text == "Hello! How can I help you?"


def test_max_tokens_may_cut_json_and_says_so(driver: Driver) -> None:
    answer = ask(driver, "Hello", "json_schema", json.dumps(PERSON), max_tokens=6)
    assert answer.reason is FinishReason.LENGTH
    assert answer.usage.completion_tokens == 6


def test_a_request_that_is_cancelled_while_its_grammar_compiles_ends_once(driver: Driver) -> None:
    id = driver.submit(chat("Hello"), raw={"constraint": Constraint("json_schema", json.dumps(PERSON))})
    driver.instance.cancel(id)
    assert driver.sink.of(id).reason is FinishReason.CANCELLED
    assert driver.ask(chat("Hello")).text == "Hello! How can I help you?"


def test_constrained_and_free_sequences_share_a_batch(driver: Driver) -> None:
    constraint = Constraint("json_schema", json.dumps(PERSON))
    bound = [driver.submit(chat(f"Count to {n}."), raw={"constraint": constraint}) for n in range(3, 6)]
    free = driver.submit(chat("Count to 20."))
    driver.run()
    assert driver.sink.of(free).text.endswith("19, 20.")
    for id in bound:
        assert set(json.loads(driver.sink.of(id).text)) == {"name", "age", "city"}
