"""How fast the engine works."""


class Rate:
    """Tokens per second over the last second or so of work."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0
        self.value = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        self._tokens += tokens
        self._seconds += seconds
        if self._seconds >= 1.0 or self.value == 0.0:
            self.value = self._tokens / self._seconds if self._seconds else 0.0
        if self._seconds >= 1.0:
            self._tokens, self._seconds = 0, 0.0
