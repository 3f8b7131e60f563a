"""Functions that take the fields of an options class as keywords.

A command has a dozen options, each with a type, a default and a description. They are the fields of
one frozen dataclass, and its function, type checkers and help() take them from there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Parameter, signature
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

P = ParamSpec("P")
O = TypeVar("O")  # noqa: E741  for options
S = TypeVar("S")
T = TypeVar("T")
R = TypeVar("R")


class with_options(Generic[P, O]):  # noqa: N801  a decorator
    """Let a function, whose last argument is options, take the options as keywords.

    The arguments before it, a source and perhaps an output, become positional.

    Args:
        options: class of the options.
    """

    def __init__(self, options: Callable[P, O]) -> None:
        self._options = options

    @overload
    def __call__(self, function: Callable[[S, O], R]) -> Callable[Concatenate[S, P], R]: ...

    @overload
    def __call__(self, function: Callable[[S, T, O], R]) -> Callable[Concatenate[S, T, P], R]: ...

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function."""
        options: Callable[..., Any] = self._options
        own = signature(function)
        first = [
            parameter.replace(kind=Parameter.POSITIONAL_ONLY)
            for parameter in [*own.parameters.values()][:-1]
        ]

        @wraps(function)
        def called(*given: Any, **keywords: Any) -> Any:
            positional, rest = given[: len(first)], given[len(first) :]
            if len(positional) < len(first):
                raise TypeError(f"{function.__name__}() lacks {first[len(positional)].name!r}")
            return function(*positional, options(*rest, **keywords))

        parameters = [*first, *signature(options).parameters.values()]
        vars(called)["__signature__"] = own.replace(parameters=parameters)
        return called
