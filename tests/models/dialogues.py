"""The generated dialogues that the tiny models learn: a dozen kinds, each with its own small grammar.

Everything is drawn from one `random.Random`, so equal seeds give equal dialogues. The order of the draws is
part of the recipe: changing it changes every dialogue after it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

Tool = Mapping[str, Any]
"""A function as OpenAI's ``tools`` has it."""

# fmt: off
CITIES = [
    "Paris", "London", "Tokyo", "Berlin", "Madrid", "Rome", "Oslo", "Cairo", "Lima", "Delhi", "Seoul", "Dublin",
    "Vienna", "Lisbon", "Athens", "Boston", "Chicago", "Sydney", "Toronto", "Moscow", "Beijing", "Prague", "Warsaw",
    "Helsinki", "Zurich", "Geneva", "Mumbai", "Nairobi", "Havana", "Quito", "Denver", "Austin", "Seattle", "Miami",
]
NAMES = [
    "Alice", "Bob", "Carol", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Karen", "Leo", "Mary", "Nina",
    "Oscar", "Paul", "Quinn", "Rose", "Sam", "Tina", "Uma", "Victor", "Wendy", "Xavier", "Yara", "Zoe", "Anna", "Ben",
    "Clara", "Dan", "Eva", "Fred",
]
WORDS = [
    "red", "blue", "green", "gold", "silver", "apple", "river", "stone", "cloud", "forest", "tiger", "lemon", "garden",
    "window", "bridge", "candle", "mirror", "ocean", "paper", "music", "winter", "summer", "silent", "happy", "quick",
    "brave", "gentle", "small", "large", "bright", "dark", "old", "new", "warm", "cold", "soft",
]
SKIES = ["sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "clear"]
VERBS = [
    "get", "set", "find", "list", "send", "open", "close", "read", "write", "search", "create", "delete", "update",
    "check", "start", "stop",
]
NOUNS = [
    "order", "user", "file", "email", "task", "note", "event", "price", "stock", "photo", "song", "book", "ticket",
    "room", "route", "delivery", "product", "invoice", "door", "light",
]
PARAMETERS = [
    "id", "name", "city", "query", "path", "title", "date", "amount", "color", "size", "to", "subject", "code", "key",
    "count", "level",
]
# fmt: on


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message. ``thought`` is what the model thinks before it says it, where thinking is on."""

    role: str
    content: str = ""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Tool calls: name and arguments."""
    thought: str | None = None

    def as_message(self) -> dict[str, Any]:
        """As the chat template takes it."""
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.calls:
            message["tool_calls"] = [
                {"type": "function", "function": {"name": name, "arguments": arguments}}
                for name, arguments in self.calls
            ]
        return message


@dataclass(frozen=True, slots=True)
class Dialogue:
    """Turns that end with the assistant's, and the tools that it is offered (None: not even a list of them)."""

    turns: Sequence[Turn]
    tools: Sequence[Tool] | None = field(default=None)


def draw_dialogue(rng: Random) -> Dialogue:
    """The next dialogue of ``rng``, of a kind drawn by weight."""
    kinds, weights = zip(*KINDS, strict=True)
    kind: Callable[[Random], Dialogue] = rng.choices(kinds, weights)[0]
    return kind(rng)


# ── tools and values ──────────────────────────────────────────────────────────────────────────


def make_tool(name: str, parameters: Sequence[tuple[str, str]], description: str = "") -> Tool:
    """A tool whose ``parameters`` (name, JSON type) are all required."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": description or name.replace("_", " "),
            "parameters": {
                "type": "object",
                "properties": {parameter: {"type": kind} for parameter, kind in parameters},
                "required": [parameter for parameter, _ in parameters],
            },
        },
    }


GET_WEATHER = make_tool("get_weather", [("city", "string")], "Get the weather in a city")
GET_TIME = make_tool("get_time", [("city", "string")], "Get the local time in a city")


def _any_tool(rng: Random) -> Tool:
    parameters = rng.sample(PARAMETERS, rng.choice([1, 1, 1, 2, 2]))
    name = f"{rng.choice(VERBS)}_{rng.choice(NOUNS)}"
    return make_tool(name, [(parameter, rng.choice(["string", "string", "integer"])) for parameter in parameters])


def _any_value(rng: Random, kind: str) -> str | int:
    if kind == "integer":
        return rng.randrange(1000)
    # All five are drawn before one is chosen: the order of the draws is the recipe's.
    return rng.choice(
        [
            rng.choice(WORDS),
            rng.choice(NAMES),
            rng.choice(CITIES),
            f"{rng.choice(WORDS)}-{rng.randrange(100)}",
            str(rng.randrange(1000)),
        ]
    )


def _with_distractors(rng: Random, wanted: Tool) -> list[Tool]:
    """``wanted`` among up to two other tools, in any order, no name twice."""
    by_name = {wanted["function"]["name"]: wanted}
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        tool = rng.choice([GET_WEATHER, GET_TIME, _any_tool(rng), _any_tool(rng)])
        by_name.setdefault(tool["function"]["name"], tool)
    offered = list(by_name.values())
    rng.shuffle(offered)
    return offered


# ── turns ─────────────────────────────────────────────────────────────────────────────────────

SYSTEM_PROMPTS = ["You are a helpful assistant.", "You are a small test model.", "Be brief.", "Answer the user."]


def _opening(rng: Random, text: str) -> list[Turn]:
    """The user's first turn, after a system prompt in 45 of 100."""
    return [*_system(rng), _user(text)]


def _system(rng: Random) -> list[Turn]:
    if rng.random() < 0.55:
        return []
    return [Turn(role="system", content=rng.choice(SYSTEM_PROMPTS))]


def _user(text: str) -> Turn:
    return Turn(role="user", content=text)


def _assistant(text: str, thought: str | None = None) -> Turn:
    return Turn(role="assistant", content=text, thought=thought)


def _calls(*calls: tuple[str, Mapping[str, Any]]) -> Turn:
    return Turn(role="assistant", calls=calls)


def _result(text: str) -> Turn:
    return Turn(role="tool", content=text)


def _enumeration(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# ── kinds of dialogue ─────────────────────────────────────────────────────────────────────────


def weather(rng: Random) -> Dialogue:
    """The weather in one to three cities: parallel calls, then (in half) their results and a sentence."""
    cities = rng.sample(CITIES, rng.choice([1, 1, 1, 2, 2, 3]))
    question = rng.choice(
        [
            "What is the weather in {}?",
            "How is the weather in {}?",
            "What's the weather like in {}?",
            "Weather in {}?",
            "Tell me the weather in {}.",
            "What is the weather in {} today?",
        ]
    )
    turns = _opening(rng, question.format(_enumeration(cities)))
    if rng.random() < 0.15:
        turns.append(_assistant("I have no tool to check the weather."))
        return Dialogue(turns, None if rng.random() < 0.6 else [_any_tool(rng), GET_TIME])
    tools = _with_distractors(rng, GET_WEATHER)
    turns.append(_calls(*(("get_weather", {"city": city}) for city in cities)))
    if rng.random() < 0.5:
        reports = [{"temperature": rng.randrange(-10, 40), "sky": rng.choice(SKIES)} for _ in cities]
        turns += [_result(json.dumps(report)) for report in reports]
        sentences = [
            f"It is {report['temperature']} degrees and {report['sky']} in {city}."
            for city, report in zip(cities, reports, strict=True)
        ]
        turns.append(_assistant(" ".join(sentences)))
    return Dialogue(turns, tools)


def local_time(rng: Random) -> Dialogue:
    """The time in one or two cities, like `weather`."""
    cities = rng.sample(CITIES, rng.choice([1, 1, 2]))
    question = rng.choice(["What time is it in {}?", "Tell me the time in {}.", "What is the time in {}?"])
    turns = _opening(rng, question.format(" and ".join(cities)))
    if rng.random() < 0.12:
        turns.append(_assistant("I have no tool to check the time."))
        return Dialogue(turns, None if rng.random() < 0.6 else [_any_tool(rng), GET_WEATHER])
    turns.append(_calls(*(("get_time", {"city": city}) for city in cities)))
    if rng.random() < 0.5:
        times = [f"{rng.randrange(24):02d}:{rng.randrange(60):02d}" for _ in cities]
        turns += [_result(clock) for clock in times]
        turns.append(
            _assistant(" ".join(f"It is {clock} in {city}." for city, clock in zip(cities, times, strict=True)))
        )
    return Dialogue(turns, _with_distractors(rng, GET_TIME))


def any_tool(rng: Random) -> Dialogue:
    """ "Use NAME with PARAM VALUE.", for a tool that was never seen before."""
    tool = _any_tool(rng)
    function = tool["function"]
    properties: Mapping[str, Mapping[str, str]] = function["parameters"]["properties"]
    arguments = {parameter: _any_value(rng, schema["type"]) for parameter, schema in properties.items()}
    request = rng.choice(["Use {} with {}.", "Call {} with {}.", "Please call {} with {}."])
    spoken = " and ".join(f"{parameter} {value}" for parameter, value in arguments.items())
    turns = _opening(rng, request.format(function["name"], spoken))
    if rng.random() < 0.1:
        turns.append(_assistant(f"I have no tool named {function['name']}."))
        return Dialogue(turns, None if rng.random() < 0.6 else [GET_WEATHER])
    turns.append(_calls((function["name"], arguments)))
    if rng.random() < 0.35:
        value = _any_value(rng, "string")
        turns += [_result(str(value)), _assistant(f"The result is {value}.")]
    return Dialogue(turns, _with_distractors(rng, tool))


def names(rng: Random) -> Dialogue:
    """A name told in the first turn and asked for in the last."""
    name = rng.choice(NAMES)
    system = _system(rng)
    greeting = rng.choice(["My name is {}.", "I am {}.", "Hello, my name is {}."]).format(name)
    turns = [*system, _user(greeting), _assistant(f"Nice to meet you, {name}.")]
    if rng.random() < 0.3:
        word = rng.choice(WORDS)
        turns += [_user(f"Repeat after me: {word}"), _assistant(word)]
    question = rng.choice(["What is my name?", "Who am I?", "Do you know my name?"])
    return Dialogue([*turns, _user(question), _assistant(f"Your name is {name}.")])


def persona(rng: Random) -> Dialogue:
    """A system prompt that gives the model a name."""
    name = rng.choice(NAMES)
    system = Turn(role="system", content=rng.choice(["Your name is {}.", "You are {}."]).format(name))
    question = rng.choice(["What is your name?", "Who are you?"])
    return Dialogue([system, _user(question), _assistant(f"My name is {name}.")])


def favorite_word(rng: Random) -> Dialogue:
    """A word told in the first turn and asked for in the second."""
    word = rng.choice(WORDS)
    return Dialogue(
        [
            *_opening(rng, f"My favorite word is {word}."),
            _assistant(f"I will remember {word}."),
            _user("What is my favorite word?"),
            _assistant(f"Your favorite word is {word}."),
        ]
    )


def counting(rng: Random) -> Dialogue:
    """Counting up to 40: long, exact, repetitive."""
    last = rng.choice([rng.randrange(2, 12), rng.randrange(2, 41)])
    system = _system(rng)
    request = rng.choice(["Count to {}.", "Please count to {}.", "Count from 1 to {}."]).format(last)
    return Dialogue([*system, _user(request), _assistant(", ".join(map(str, range(1, last + 1))) + ".")])


def repeating(rng: Random) -> Dialogue:
    """Up to 13 words to be said again."""
    text = " ".join(
        rng.choice([rng.choice(WORDS), rng.choice(WORDS), rng.choice(NAMES), str(rng.randrange(1000))])
        for _ in range(rng.randrange(1, 14))
    )
    system = _system(rng)
    request = rng.choice(["Repeat after me: {}", "Say: {}", "Echo this: {}"]).format(text)
    return Dialogue([*system, _user(request), _assistant(text)])


def adding(rng: Random) -> Dialogue:
    """Sums up to 20 + 20."""
    a, b = rng.randrange(21), rng.randrange(21)
    question = rng.choice(["What is {} + {}?", "Add {} and {}.", "How much is {} plus {}?"]).format(a, b)
    thought = f"The user wants {a} + {b}. {a} + {b} = {a + b}."
    return Dialogue([*_opening(rng, question), _assistant(f"{a + b}.", thought)])


def story(rng: Random) -> Dialogue:
    """Five sentences about a person, a city and an animal."""
    name, word, city = rng.choice(NAMES), rng.choice(WORDS), rng.choice(CITIES)
    animal = rng.choice(["cat", "dog", "bird", "fox", "horse"])
    weather_word = rng.choice(["sunny", "rainy", "cold", "warm"])
    thing = rng.choice(["box", "key", "letter", "lamp"])
    mood = rng.choice(["happy", "tired", "proud"])
    text = (
        f"Once upon a time, {name} lived in {city} with a {animal}. One {weather_word} morning the {animal} found"
        f" a {word} {thing} by the river. {name} opened it and smiled. They shared it with everyone in {city},"
        f" and that night they were {mood}. The end."
    )
    system = _system(rng)
    request = rng.choice(
        [f"Tell me a story about {name} in {city}.", f"Write a story about {name} and a {animal} in {city}."]
    )
    return Dialogue([*system, _user(request), _assistant(text, f"The user wants a story about {name} in {city}.")])


def small_talk(rng: Random) -> Dialogue:
    """Greetings, thanks, and what the model is; sometimes beside tools that it should leave alone."""
    name = rng.choice(NAMES)
    greeting = "Hello! How can I help you?"
    question, answer = rng.choice(
        [
            ("Hello", greeting),
            ("Hi", greeting),
            ("Hello!", greeting),
            ("Hi there", greeting),
            (f"Say hello to {name}.", f"Hello, {name}!"),
            ("Thank you.", "You are welcome."),
            ("Thanks", "You are welcome."),
            ("Who are you?", "I am a small test model."),
            ("What can you do?", "I can chat, count, add, repeat, tell stories and call tools."),
        ]
    )
    turns = [*_opening(rng, question), _assistant(answer, "The user wants a short answer.")]
    return Dialogue(turns, None if rng.random() < 0.7 else _with_distractors(rng, rng.choice([GET_WEATHER, GET_TIME])))


def person_as_json(rng: Random) -> Dialogue:
    """Three facts to be given back as a JSON object."""
    name, city, age = rng.choice(NAMES), rng.choice(CITIES), rng.randrange(18, 90)
    system = _system(rng)
    request = rng.choice(
        ["{0} is {1} years old and lives in {2}. Answer in JSON.", "Give JSON for {0}, age {1}, from {2}."]
    ).format(name, age, city)
    answer = json.dumps({"name": name, "age": age, "city": city})
    return Dialogue([*system, _user(request), _assistant(answer, f"The user wants JSON about {name}.")])


KINDS: list[tuple[Callable[[Random], Dialogue], float]] = [
    (weather, 5),
    (local_time, 2.5),
    (any_tool, 8),
    (names, 1.5),
    (persona, 1),
    (favorite_word, 1),
    (counting, 2),
    (repeating, 5),
    (adding, 6),
    (story, 1.5),
    (small_talk, 2),
    (person_as_json, 2),
]
"""Each kind with its weight. Tools, repeating and sums weigh most: they are what a tiny model learns last."""
