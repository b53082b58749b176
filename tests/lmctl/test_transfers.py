"""Questions on a real terminal."""

import os
import sys

from tests.lmctl.terminal import terminal

ASKING = """
from lmctl.transfers import answered
for _ in range(1000):
    try:
        answered("Sure?")
    except KeyboardInterrupt:
        print("no")
print("end")
"""


async def test_an_interrupt_is_seen_however_soon_after_the_question_it_comes() -> None:
    # Python's own wait for a line missed 11 of 3000 of these: it went on waiting until another key was struck.
    # A thousand: one that is seen late costs a tenth of a second, and not even all of them would outlast the test.
    async with terminal(sys.executable, "-c", ASKING, env=dict(os.environ)) as screen:
        for _ in range(1000):
            await screen.until("Sure?")
            screen.type("\x03")
            await screen.until("no")
        await screen.until("end")
