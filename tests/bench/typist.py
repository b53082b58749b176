"""lmd with a worker that computes nothing: the real daemon, whose every token costs only what the daemon itself takes.

    python -m tests.bench.typist daemon CPU,… CPU,… --config FILE     # lmd on the first CPUs, its workers on the second

The worker speaks the real protocol over the real channel. It answers every request with `text_of` so many words, a
word to a token, all open requests in one frame a step, and takes the next step once the daemon has read the last:
so the daemon never waits, and never finds two steps at once, which it would make one event of.
"""

import array
import fcntl
import functools
import os
import socket
import sys
import termios
import time
from collections.abc import Sequence

from lmd.generation import FinishReason, Usage
from lmd.worker.channel import Channel, ChannelClosed
from lmd.worker.fake import fake_facts, fake_loaded
from lmd.worker.messages import Cancel, Finished, FromWorker, Generate, Hello, Load, Loaded, Output, Step, ToWorker
from tests.bench.prompts import WORDS

LOOK_SECONDS = 2e-5
"""Between two looks whether the daemon has read the last step; the kernel makes about 0.1 ms of it."""


def word(n: int) -> str:
    """Token number ``n`` of every answer."""
    return " " + WORDS[n % len(WORDS)]


def text_of(n_tokens: int) -> str:
    return "".join(map(word, range(n_tokens)))


class Typist:
    """The child: greets, loads at once, and types until the daemon closes the socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._channel: Channel[ToWorker, FromWorker] = Channel(sock, ToWorker)
        self._open: dict[int, tuple[int, int]] = {}
        """Tokens typed and tokens wanted, by request."""

    def run(self) -> None:
        self._channel.send(Hello(fake_facts(os.getpid())))
        try:
            while True:
                for message in self._channel.poll(0.0 if self._open else None):
                    self._take(message)
                self._wait_for_reader()
                self._step()
        except ChannelClosed:
            return

    def _take(self, message: ToWorker) -> None:
        match message:
            case Load():
                self._channel.send(Loaded(fake_loaded(message.params)))
            case Generate():
                self._open[message.id] = (0, message.sampling.max_tokens or 1)
            case Cancel():
                if self._open.pop(message.id, None) is not None:
                    self._channel.send(Finished(message.id, FinishReason.CANCELLED, Usage()))

    def _wait_for_reader(self) -> None:
        unread = array.array("i", [0])
        while True:
            fcntl.ioctl(self._socket, termios.TIOCOUTQ, unread)
            if not unread[0]:
                return
            time.sleep(LOOK_SECONDS)

    def _step(self) -> None:
        if not self._open:
            return
        self._channel.send(Step([Output(id, word(typed), 1) for id, (typed, _) in self._open.items()]))
        self._open = {id: (typed + 1, wanted) for id, (typed, wanted) in self._open.items()}
        for id, (typed, wanted) in list(self._open.items()):
            if typed >= wanted:
                del self._open[id]
                self._channel.send(Finished(id, FinishReason.LENGTH, Usage(prompt_tokens=1, completion_tokens=typed)))


def daemon(own: Sequence[int], workers: Sequence[int], arguments: Sequence[str]) -> int:
    """``lmd`` with ``arguments`` on the CPUs ``own``, its workers typists on the CPUs ``workers``."""
    import lmd.daemon
    from lmd.__main__ import main
    from lmd.pool.pool import Pool
    from lmd.worker.process import Worker, WorkerProcess

    os.sched_setaffinity(0, own)
    command = (sys.executable, "-m", "tests.bench.typist", "worker", ",".join(map(str, workers)))

    async def spawn() -> Worker:
        return await WorkerProcess.spawn(command)

    lmd.daemon.Pool = functools.partial(Pool, spawn=spawn)  # type: ignore[assignment, misc]
    return main(arguments)


def _cpus(text: str) -> list[int]:
    return [int(cpu) for cpu in text.split(",")]


def _main(arguments: Sequence[str]) -> int:
    what, *rest = arguments
    if what == "worker":
        os.sched_setaffinity(0, _cpus(rest[0]))
        Typist(socket.socket(fileno=int(rest[1]))).run()
        return 0
    return daemon(_cpus(rest[0]), _cpus(rest[1]), rest[2:])


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
