"""Checks of arguments: each rule once, for all packages.

A check returns the value in the type that the code works with, or raises a UsageError that names
the argument, its value and what it must be. What only one module takes is checked there, with
`require`.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from numbers import Integral, Real
from typing import Any, TypeGuard, TypeVar

from shardio.errors import UsageError, argument

T = TypeVar("T")


def require(good: object, name: str, value: object, wanted: str) -> None:
    """Raise UsageError unless an argument is good.

    Args:
        good: whether the argument is good.
        name: name of the argument.
        value: value of the argument.
        wanted: description of good values, as "True or False".
    """
    if not good:
        raise UsageError(f"it must be {wanted}", where=argument(name, value))


def is_whole(value: object, *, least: int | None = None, most: int | None = None) -> TypeGuard[int]:
    """Tell whether a value is a whole number, of Python or NumPy, within bounds.

    Args:
        value: any value; a bool is not a number.
        least: smallest number allowed.
        most: largest number allowed.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        return False
    number = int(value)
    return (least is None or number >= least) and (most is None or number <= most)


def whole_number(
    name: str, value: Any, *, least: int | None = None, most: int | None = None
) -> int:
    """Check a whole number.

    Args:
        name: name of the argument.
        value: value of the argument.
        least: smallest number allowed.
        most: largest number allowed, where there is a smallest.

    Raises:
        UsageError: the value is not a whole number, or outside the bounds.
    """
    bounds = "" if least is None else f", at least {least}"
    if most is not None:
        bounds = f" from {least} to {most}"
    require(is_whole(value, least=least, most=most), name, value, f"a whole number{bounds}")
    return int(value)


def seed_of_order(value: object) -> int:
    """Check the seed of a shuffle, which has 64 bits.

    Raises:
        UsageError: the value is not a whole number, or outside 0 to 2**64 - 1.
    """
    number = whole_number("seed", value, least=0)
    require(number < 1 << 64, "seed", number, "below 2**64")
    return number


def probability(name: str, value: object) -> float:
    """Check a probability.

    Raises:
        UsageError: the value is not a number, or outside 0 to 1.
    """
    number = float(value) if isinstance(value, Real) else -1.0
    require(0 <= number <= 1, name, value, "a probability between 0 and 1")
    return number


def positive(name: str, value: object) -> float:
    """Check a number above 0.

    Raises:
        UsageError: the value is not a number, not finite, or not above 0.
    """
    number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else -1.0
    require(0 < number < math.inf, name, value, "a number above 0")
    return number


def flag(name: str, value: object) -> bool:
    """Check a bool.

    Raises:
        UsageError: the value is neither True nor False.
    """
    require(isinstance(value, bool), name, value, "True or False")
    return bool(value)


def one_of(name: str, value: T, choices: Collection[str]) -> T:
    """Check a choice among names.

    Raises:
        UsageError: the value is none of the choices.
    """
    *others, last = map(repr, choices)
    wanted = f"{', '.join(others)} or {last}" if others else last
    require(isinstance(value, str) and value in choices, name, value, wanted)
    return value
