"""Random bits for names of what passes by, never for what must stay secret."""

import secrets
from typing import Final

FETCHED: Final = 4096


class Randomness:
    """Random bits, of which many are fetched at once; for one thread.

    To fetch them is a system call that lets other threads go first, which at every id costs a
    server more than the id (measured: 25 µs against 2).
    """

    def __init__(self) -> None:
        self._bytes, self._at = b"", 0

    def taken(self, size: int) -> bytes:
        """So many bytes; none is given twice."""
        if self._at + size > len(self._bytes):
            self._bytes, self._at = secrets.token_bytes(FETCHED), 0
        self._at += size
        return self._bytes[self._at - size : self._at]

    def bits(self, count: int) -> int:
        """A number of that many bits."""
        size = (count + 7) // 8
        return int.from_bytes(self.taken(size), "big") >> (8 * size - count)
