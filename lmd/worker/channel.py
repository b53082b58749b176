"""Frames over a stream socket: a 4-byte little-endian length and that many bytes of msgpack.

`FrameDecoder` and `encode_frame` are pure and serve both ends. `Channel` is the worker's end: one
thread, no event loop. The daemon's end is `lmd.worker.process`, on asyncio.
"""

import select
import socket
import struct
import time
from collections import deque
from typing import Any, Generic, TypeVar

import msgspec

MAX_FRAME = 256 * 2**20
"""Bytes in one frame's payload. Far above the largest prompt ([server] max_body), far below what could hurt."""

NO_MESSAGE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding a payload raises that is no message."""

_LENGTH = struct.Struct("<I")
_ENCODER = msgspec.msgpack.Encoder()


class BadFrame(Exception):
    """The peer does not speak this protocol: nothing that follows can be trusted."""


class ChannelClosed(Exception):
    """The peer closed its end, or is gone."""


def encode_frame(message: Any) -> bytearray:
    """One message as it goes over the wire. Raises BadFrame when it is larger than MAX_FRAME."""
    buffer = bytearray(_LENGTH.size)
    _ENCODER.encode_into(message, buffer, _LENGTH.size)
    size = len(buffer) - _LENGTH.size
    if size > MAX_FRAME:
        raise BadFrame(f"a message of {size} bytes is larger than a frame may be ({MAX_FRAME})")
    _LENGTH.pack_into(buffer, 0, size)
    return buffer


class FrameDecoder:
    """Cuts a byte stream into frames' payloads. ``feed`` may get any pieces, down to single bytes."""

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        self._max_frame = max_frame
        self._pieces = bytearray()
        self._size: int | None = None

    def feed(self, data: bytes) -> list[bytes]:
        """Payloads that ``data`` completes. Raises BadFrame on a length above the bound, before buffering it."""
        pieces = self._pieces
        pieces += data
        frames: list[bytes] = []
        at = 0
        while True:
            if self._size is None:
                if len(pieces) - at < _LENGTH.size:
                    break
                (self._size,) = _LENGTH.unpack_from(pieces, at)
                at += _LENGTH.size
                if self._size > self._max_frame:
                    raise BadFrame(f"a frame announces {self._size} bytes, at most {self._max_frame} are allowed")
            if len(pieces) - at < self._size:
                break
            frames.append(bytes(pieces[at : at + self._size]))
            at += self._size
            self._size = None
        if at:
            del pieces[:at]
        return frames

    @property
    def pending(self) -> int:
        """Bytes of a frame that is not whole yet (its length's bytes included only while they are incomplete)."""
        return len(self._pieces)


In = TypeVar("In")
Out = TypeVar("Out")


class Channel(Generic[In, Out]):
    """The blocking end of a socketpair, for one thread.

    ``incoming`` is the type (a union of tagged structs) that received frames are decoded as.
    """

    def __init__(self, sock: socket.socket, incoming: Any) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._decode = msgspec.msgpack.Decoder(incoming).decode
        self._frames = FrameDecoder()
        self._received: deque[In] = deque()
        self._closed = False
        # poll, not select: a worker may have file descriptors above 1024.
        self._poll_read = select.poll()
        self._poll_read.register(sock, select.POLLIN)
        self._poll_both = select.poll()
        self._poll_both.register(sock, select.POLLIN | select.POLLOUT)

    def fileno(self) -> int:
        return self._sock.fileno()

    def poll(self, timeout: float | None = 0.0) -> list[In]:
        """Every message that is there; waits up to ``timeout`` seconds for the first one (None: as long as it takes).

        Returns [] when none came in time. Raises ChannelClosed once the peer is gone and all that it
        sent before was returned, BadFrame when it sent something else than messages.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._read()
        while not self._received:
            if self._closed:
                raise ChannelClosed
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                break
            self._poll_read.poll(None if left is None else max(1, round(left * 1000)))
            self._read()
        messages = list(self._received)
        self._received.clear()
        return messages

    def send(self, message: Out) -> None:
        """Send all of it, waiting while the socket is full. What arrives meanwhile is kept for `poll`.

        Reading while waiting to write is what makes two full sockets impossible to lock each other.
        Raises ChannelClosed when the peer is gone.
        """
        view = memoryview(encode_frame(message))
        while view:
            try:
                view = view[self._sock.send(view) :]
            except (BlockingIOError, InterruptedError):
                if not self._closed:
                    self._poll_both.poll()
                    self._read()
                else:
                    raise ChannelClosed from None
            except OSError as exc:
                raise ChannelClosed from exc

    def close(self) -> None:
        self._closed = True
        self._sock.close()

    def _read(self) -> None:
        while not self._closed:
            try:
                data = self._sock.recv(1 << 18)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                data = b""
            if not data:
                self._closed = True
                return
            for payload in self._frames.feed(data):
                try:
                    self._received.append(self._decode(payload))
                except NO_MESSAGE as exc:
                    raise BadFrame(f"a frame is no message: {exc}") from exc
