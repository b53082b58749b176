"""Where readers of tool calls put what they find, so that a call that turns out to be none can be taken back."""

from collections.abc import Mapping, Sequence
from typing import Any

from lmd.chat.formats import Format
from lmd.chat.ids import new_id
from lmd.chat.stream import Malformed
from lmd.generation import ReasoningDelta, TextDelta, Tool, ToolCallDelta, ToolCallEnd, ToolCallStart

MAX_NAME = 256
"""The longest name that is looked for, in characters, where no tool has a longer one."""

ChatEvent = ReasoningDelta | TextDelta | ToolCallStart | ToolCallDelta | ToolCallEnd


class CallSink:
    """Turns what a reader finds into events, and takes them back when the call was none.

    ``streaming``: events are given out as they come. Otherwise those of a call stay uncommitted until it is whole.
    """

    def __init__(
        self, format_: Format, tools: Sequence[Tool], events: list[ChatEvent], choice: int, *, streaming: bool
    ) -> None:
        self._format = format_
        self._tools = {tool.name: tool for tool in tools}
        self._events = events
        self._choice = choice
        self._streaming = streaming
        self._begun: int | None = None
        self._ids: set[str] = set()
        self.count = 0

    @property
    def committed(self) -> int:
        return len(self._events) if self._begun is None else self._begun

    @property
    def streaming(self) -> bool:
        return self._streaming

    @property
    def longest_name(self) -> int:
        return max(map(len, self._tools), default=MAX_NAME)

    def taken(self, n: int) -> None:
        if self._begun is not None:
            self._begun -= n

    def known(self, name: str) -> bool:
        return name in self._tools

    def schema(self, name: str) -> Mapping[str, Any]:
        tool = self._tools.get(name)
        return (tool.parameters if tool is not None else None) or {}

    def start(self, name: str, id_: str = "") -> None:
        """`Malformed` when no tool has that name: it was no call."""
        if not self.known(name):
            raise Malformed
        if not self._streaming:
            self._begun = len(self._events)
        id_ = id_ if id_ and id_ not in self._ids else new_id(self._format, name, self.count, self._ids)
        self._ids.add(id_)
        self._events.append(ToolCallStart(self.count, id_, name, self._choice))
        self.count += 1

    def arguments(self, text: str) -> None:
        if text:
            self._events.append(ToolCallDelta(self.count - 1, text, self._choice))

    def end(self) -> None:
        self._events.append(ToolCallEnd(self.count - 1, self._choice))
        self._begun = None

    def rollback(self) -> None:
        if self._begun is not None:
            for event in self._events[self._begun :]:
                if isinstance(event, ToolCallStart):
                    self._ids.discard(event.id)
                    self.count -= 1
            del self._events[self._begun :]
            self._begun = None
