"""Lines typed at a terminal, with editing and history.

GNU readline and Python leave a gap between the prompt and their wait for keys, in which an interrupt is seen at the
next key only. So while a line is read Ctrl-C is no signal but a key, which ends the line with a mark in it.
"""

import os
import readline
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_MARK = "\x03"
"""Readline shows it as ^C."""
_PREPARED = r'"\C-v": quoted-insert'
_BINDING = r'"\C-{letter}": "\C-v\C-c\C-m"'
_CC = 6
"""Index of the control characters in what tcgetattr returns."""


def read_line(prompt: str) -> str:
    """One line of standard input, which is a terminal. EOFError at its end, KeyboardInterrupt on Ctrl-C."""
    try:
        with _interrupt_as_key():
            line = input(prompt)
    except KeyboardInterrupt:
        print()
        raise
    if _MARK in line:
        readline.remove_history_item(readline.get_current_history_length() - 1)
        raise KeyboardInterrupt
    return line


@contextmanager
def _interrupt_as_key() -> Iterator[None]:
    terminal = sys.stdin.fileno()
    before, changed = termios.tcgetattr(terminal), termios.tcgetattr(terminal)
    key = ord(before[_CC][termios.VINTR])
    if "libedit" in (readline.__doc__ or "") or not 0 < key < ord(" "):
        yield  # other bindings, or none that could be made: there it stays a signal
        return
    readline.parse_and_bind(_PREPARED)
    readline.parse_and_bind(_BINDING.format(letter=chr(key | 0x60)))
    changed[_CC][termios.VINTR] = bytes([os.fpathconf(terminal, "PC_VDISABLE")])
    try:
        termios.tcsetattr(terminal, termios.TCSANOW, changed)
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
