"""What one step computes, in llama.cpp's own structure."""

from collections.abc import Sequence

import llama_cpp.llama_cpp as _lib
import numpy as np


class Batch:
    """Up to ``capacity`` tokens for one `Context.decode`, each of one sequence. Reused from step to step."""

    def __init__(self, capacity: int) -> None:
        self.native = _lib.llama_batch_init(capacity, 0, 1)
        self.capacity = capacity
        self.n = 0
        as_array = np.ctypeslib.as_array
        self._token = as_array(self.native.token, (capacity,))
        self._pos = as_array(self.native.pos, (capacity,))
        as_array(self.native.n_seq_id, (capacity,))[:] = 1
        # seq_id is an array of pointers to one-element arrays: view those elements as one address list.
        self._seq = [self.native.seq_id[i] for i in range(capacity)]
        self._output = as_array(self.native.logits, (capacity,))

    def clear(self) -> None:
        self.n = 0

    def add(self, tokens: Sequence[int], start: int, seq_id: int, n_outputs: int) -> int:
        """Append ``tokens`` at positions from ``start``; the last ``n_outputs`` give logits. Index of the first."""
        first, last = self.n, self.n + len(tokens)
        self._token[first:last] = tokens
        self._pos[first:last] = range(start, start + len(tokens))
        self._output[first:last] = 0
        if n_outputs:
            self._output[last - n_outputs : last] = 1
        for pointer in self._seq[first:last]:
            pointer[0] = seq_id
        self.n = last
        return first

    def close(self) -> None:
        _lib.llama_batch_free(self.native)
