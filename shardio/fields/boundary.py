"""The one place where what hostile bytes raise becomes CodecError.

Every function of this package that looks at the bytes of a field is a decoder. A decoder raises
CodecError for bytes that do not decode, whatever the parser below it thought of: overflow, a wrong
type, deep recursion, an assertion of OpenCV. Whoever knows the sample adds the place.

What is not the bytes' fault passes as it is: errors of storage (OSError), wrong arguments
(UsageError), and memory that the machine does not have (MemoryError), since decoders compare sizes
that bytes announce with their limits before they allocate.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from shardio.errors import CodecError, ShardioError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

_MARK = "_is_decoder"
_NOT_OF_THE_BYTES = (ShardioError, OSError, MemoryError)


def decoder(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that looks at the bytes of a field raise nothing but CodecError for them.

    A function that is a decoder already stays as it is.
    """
    if _MARK in vars(function):
        return function

    @wraps(function)
    def decode(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except _NOT_OF_THE_BYTES:
            raise
        except Exception as error:  # bytes choose what parsers meet, so any kind may come
            raise CodecError(f"the bytes do not decode: {type(error).__name__}: {error}") from error

    vars(decode)[_MARK] = True
    return decode
