"""The one place where what hostile bytes raise becomes CodecError.

Every function of this package that looks at the bytes of a field is a decoder. A decoder raises
CodecError for bytes that do not decode, whatever the parser below it thought of: overflow, a wrong
type, deep recursion, an assertion of OpenCV. Whoever knows the sample adds the place.

What is not the bytes' fault passes as it is: errors of storage (OSError), wrong arguments
(UsageError), memory that the machine does not have (MemoryError), since decoders compare sizes
that bytes announce with their limits before they allocate, and mistakes in the code: a missing name
or library, and in shardio's own decoders a missing attribute. A user's parser may meet that one
because of the bytes.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from shardio.errors import CodecError, ShardioError

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")

_MARK = "_is_decoder"


def not_of_the_data(function: Callable[..., Any]) -> tuple[type[Exception], ...]:
    """Return the errors for which no data are to blame that a function gets."""
    ours = str(function.__module__).partition(".")[0] == "shardio"
    return (MemoryError, NameError, ImportError, *[AttributeError] * ours)


def decoder(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that looks at the bytes of a field raise nothing but CodecError for them.

    A function that is a decoder already stays as it is.
    """
    if _MARK in vars(function):
        return function

    passed: tuple[type[Exception], ...] = (ShardioError, OSError, *not_of_the_data(function))

    @wraps(function)
    def decode(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except passed:
            raise
        except Exception as error:  # bytes choose what parsers meet, so any kind may come
            raise CodecError(f"the bytes do not decode: {type(error).__name__}: {error}") from error

    vars(decode)[_MARK] = True
    return decode
