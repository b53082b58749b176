"""Decoders for the two streams that the control socket sends: lines (NDJSON) and server-sent events."""

from dataclasses import dataclass


@dataclass(slots=True)
class LineDecoder:
    """Bytes in any pieces → whole lines without their ends (LF or CRLF). Empty lines are told too."""

    _held: bytes = b""

    def feed(self, chunk: bytes) -> list[bytes]:
        *lines, self._held = (self._held + chunk).split(b"\n")
        return [line.removesuffix(b"\r") for line in lines]

    def flush(self) -> list[bytes]:
        """The last line, where the stream ended without a line end."""
        held, self._held = self._held, b""
        return [held.removesuffix(b"\r")] if held else []


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event, or a ``comment`` line, which servers send to keep a connection alive while there is no event."""

    data: str = ""
    name: str = "message"
    comment: str | None = None


class SseDecoder:
    """Bytes in any pieces → events, after https://html.spec.whatwg.org/multipage/server-sent-events.html.

    Ids and retry times are left out: nothing here reconnects. An event that the end cuts off is dropped,
    as the standard has it. Lone CR line ends, which no server in reach sends, are not recognised.
    """

    def __init__(self) -> None:
        self._lines = LineDecoder()
        self._data: list[str] = []
        self._name = ""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        return [event for line in self._lines.feed(chunk) if (event := self._line(line.decode("utf-8", "replace")))]

    def flush(self) -> list[ServerEvent]:
        self._lines.flush()
        self._data, self._name = [], ""
        return []

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            data, name = self._data, self._name
            self._data, self._name = [], ""
            return ServerEvent("\n".join(data), name or "message") if data else None
        if line.startswith(":"):
            return ServerEvent(comment=line[1:].strip())
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._name = value
        return None
