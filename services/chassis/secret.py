"""A value that cannot be shown: not printed, logged, formatted, pickled, copied or put in JSON."""

import hmac
from typing import ClassVar, Final, NoReturn, final

MASK: Final = "•••"


@final
class Secret:
    """Secret bytes in memory; only `reveal` and `reveal_text` give them back.

    Comparison takes constant time and there is no hash, so a secret is never a key of a mapping
    or a member of a set.
    """

    __slots__ = ("__value", "__weakref__")
    __hash__: ClassVar[None] = None  # type: ignore[assignment]

    def __init__(self, value: bytes | str) -> None:
        """Hold `value`; text is held as UTF-8. Raises TypeError for anything else."""
        if not isinstance(value, bytes | str):
            raise TypeError("a secret is made of bytes or text")
        self.__value: Final = value.encode() if isinstance(value, str) else value

    def reveal(self) -> bytes:
        """The value, in clear."""
        return self.__value

    def reveal_text(self) -> str:
        """The value as UTF-8 text, in clear. Raises ValueError when it is not text."""
        try:
            return self.__value.decode()
        except UnicodeDecodeError:
            # The decoder's own error carries the bytes.
            raise ValueError("the secret is not UTF-8 text") from None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self.__value, other.__value)

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __getstate__(self) -> NoReturn:
        raise TypeError("a secret is never copied or pickled")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__getstate__()

    def __reduce__(self) -> NoReturn:
        self.__getstate__()
