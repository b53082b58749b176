"""``lmctl chat``: one question, or a conversation on a terminal."""

import sys
from contextlib import closing

from lmctl.client import Client
from lmctl.completion import Called, Piece, Said, Thought, Waiting
from lmctl.conversation import Answer, Conversation
from lmctl.errors import CommandError, UsageError
from lmctl.options import Common
from lmctl.output import console, note, print_error, print_json
from lmctl.text import printable
from lmctl.wait import waiting
from lmd.protocol import InstanceRow, ModelRow, PresetRow

HELP = r"A line that ends with \ goes on. Ctrl-C stops an answer, /clear forgets, Ctrl-D or /exit leaves."


def run_chat(
    common: Common, model: str | None, *, prompt: str | None, system: str | None, stats: bool, ttl: float | None
) -> None:
    at_terminal = sys.stdin.isatty()
    piped = "" if at_terminal else sys.stdin.read().strip("\n")
    question = "\n\n".join(part for part in (prompt, piped) if part)
    interactive = prompt is None and at_terminal and sys.stdout.isatty() and not common.json
    if not interactive and not question.strip():
        raise UsageError("There is no question.", hint="Say it with -p TEXT, or on standard input.")

    client = common.client()
    talk = Conversation(client, model or only_model(client), system, ttl)
    if interactive:
        converse(talk, stats=stats)
    elif common.json:
        print_json(answer_whole(talk, question))
    else:
        print_answer(talk, question, stats=stats)


def only_model(client: Client) -> str:
    """The model that is meant where none is named: the one in memory, else the only one that there is."""
    loaded = [row.id for row in client.get("/instances", list[InstanceRow]) if row.state == "ready"]
    presets = [row for row in client.get("/presets", list[PresetRow]) if row.serving]
    models = [row.key for row in client.get("/models", list[ModelRow]) if not row.error]
    served = [row.name for row in presets] + [key for key in models if key not in {row.model for row in presets}]
    names = loaded or served
    if len(names) == 1:
        return names[0]
    if not names:
        raise CommandError(
            "There is no model to talk to.",
            hint="Put a *.gguf file into one of the directories that [paths] models names.",
        )
    raise UsageError(f"Which model? There are {', '.join(names)}.", hint=f"For example: lmctl chat {names[0]}")


def answer_whole(talk: Conversation, question: str) -> dict[str, object]:
    answer = Answer()
    for _ in talk.ask(question, answer):
        pass
    return {
        "model": talk.model,
        "content": answer.text,
        "reasoning_content": answer.reasoning or None,
        "tool_calls": [{"name": name, "arguments": arguments} for name, arguments in answer.calls.values()],
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "stats": {"time_to_first_token": answer.first, "tokens_per_second": answer.tokens_per_second},
    }


def print_answer(talk: Conversation, question: str, *, stats: bool) -> None:
    """The answer on standard output as it streams; reasoning only on a terminal, dimmed; calls there or beside."""
    answer = Answer()
    page = Page()
    try:
        with closing(talk.ask(question, answer)) as pieces, waiting(talk.model) as wait:
            for piece in pieces:
                if isinstance(piece, Waiting):
                    wait.say(piece.note)
                elif isinstance(piece, Said | Thought | Called):
                    wait.end()
                    page.write(piece)
    finally:
        page.end(answer)
    if stats:
        note(told(answer))


class Page:
    """Where one answer is written. Standard output gets the answer's text and at most a line end more.

    A terminal also gets the reasoning and the tool calls, dimmed, each kind on lines of its own.
    """

    def __init__(self) -> None:
        self._terminal = console()
        self._kind: type[Piece] = Said
        self._last = ""

    def write(self, piece: Said | Thought | Called) -> None:
        if not self._terminal.is_terminal:
            if isinstance(piece, Said):
                self._put(piece.text)
            return
        named = isinstance(piece, Called) and bool(piece.name)
        if self._last and (type(piece) is not self._kind or named):
            self._put("" if self._last == "\n" else "\n")
            self._put("" if named and self._kind is Called else "\n")
        self._kind = type(piece)
        text = piece.text if not isinstance(piece, Called) else _called(piece.name, piece.arguments)
        # What the model says must not move the cursor or set the window's title.
        if text := printable(text):
            self._terminal.print(text, end="", soft_wrap=True, style=None if isinstance(piece, Said) else "dim")
            self._put(text, shown=True)

    def _put(self, text: str, *, shown: bool = False) -> None:
        if not text:
            return
        if not shown:
            sys.stdout.write(text)
        self._last = text[-1]
        sys.stdout.flush()

    def end(self, answer: Answer) -> None:
        if self._last not in ("", "\n"):
            self._put("\n")
        if not self._terminal.is_terminal:
            for name, arguments in answer.calls.values():
                note(_called(name, arguments))


def _called(name: str, arguments: str) -> str:
    return (f"tool call: {name} " if name else "") + arguments


def told(answer: Answer) -> str:
    """The answer's figures in one line."""
    facts = []
    if answer.usage:
        facts.append(f"{answer.usage.prompt_tokens} tokens in, {answer.usage.completion_tokens} out")
    if answer.tokens_per_second:
        facts.append(f"{answer.tokens_per_second:.1f} tokens/s")
    if answer.first is not None:
        facts.append(f"first after {answer.first:.2f} s")
    if answer.finish_reason:
        facts.append(f"ended by {answer.finish_reason}")
    return ", ".join(facts)


def converse(talk: Conversation, *, stats: bool) -> None:
    """Questions from the terminal until its end. Ctrl-C ends the answer, or empties the line; never the program."""
    note(f"Talking to {talk.model}. {HELP}")
    while True:
        try:
            if not take_turn(talk, stats=stats):
                return
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            note("Ctrl-D or /exit leaves.")


def take_turn(talk: Conversation, *, stats: bool) -> bool:
    """One question and its answer. False: the person wants to leave."""
    question = read_question()
    match question.strip():
        case "":
            pass
        case "/exit" | "/bye" | "/quit":
            return False
        case "/clear":
            talk.said.clear()
            note("Forgotten.")
        case "/help" | "/?":
            note(HELP)
        case _:
            try:
                print_answer(talk, question, stats=stats)
            except KeyboardInterrupt:
                note("Stopped.")
            except CommandError as error:
                # The daemon may be back for the next question; what was said stays.
                print_error(error, as_json=False)
    return True


def read_question() -> str:
    """One question: a line, or several where each but the last ends with a backslash."""
    from lmctl.prompt import read_line

    lines = [read_line("> ")]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        lines.append(read_line(". "))
    return "\n".join(lines)
