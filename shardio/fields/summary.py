"""Summaries of values: what `verify --deep` tells of a field beside whether it is sound.

A field type summarizes each value; shardio.inspection.contents adds the summaries up. A type of a
user is therefore summarized as one of shardio is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

MOST_CLASSES = 10_000
"""Number of class numbers, the smallest ones, that are counted for a field."""

_AT_ONCE = 1 << 16  # values of one byte, which NumPy widens to count them


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldSummary:
    """Summary of one value of a field.

    A value that readers refuse raises CodecError instead. What is odd but delivered is a note.

    Attributes:
        unit: plural name of what is counted, such as "pixels".
        values: number of them in this value.
        classes: number of them by class number; None if they have no classes. `count_classes`
            leaves out large class numbers beyond the first 10,000.
        low: smallest value; None if there is none.
        high: largest value; None if there is none.
        counts: number of them by property, such as {"zero": 12}.
        notes: number of them by note, which is the end of a sentence and an advice to the user,
            such as {("are empty", "a crop drops them"): 2}.
    """

    unit: str = "values"
    values: int = 1
    classes: Mapping[int, int] | None = None
    low: float | None = None
    high: float | None = None
    counts: Mapping[str, int] = field(default_factory=dict)
    notes: Mapping[tuple[str, str], int] = field(default_factory=dict)


def count_classes(values: NDArray[Any]) -> dict[int, int]:
    """Count class numbers, of which at most the 10,000 smallest are returned.

    Args:
        values: integers or booleans of any shape.
    """
    flat: NDArray[np.int64] = values.ravel()
    if flat.dtype.itemsize == 1 and flat.dtype.kind in "bu":
        pieces = (flat[start : start + _AT_ONCE] for start in range(0, flat.size, _AT_ONCE))
        found = np.sum([np.bincount(piece, minlength=256) for piece in pieces], axis=0)
        numbers = np.flatnonzero(found)
        counts = found[numbers]
    else:
        numbers, counts = np.unique(flat, return_counts=True)
    few = slice(MOST_CLASSES)
    return dict(zip(numbers[few].tolist(), counts[few].tolist(), strict=True))


def summarize_numbers(values: NDArray[Any], unit: str) -> FieldSummary:
    """Summarize numbers by their range and the counts of those that are zero or not finite.

    Args:
        values: real numbers or booleans of any shape.
        unit: plural name of a number.
    """
    sound = np.isfinite(values)
    finite = values if sound.all() else values[sound]
    return FieldSummary(
        unit=unit,
        values=values.size,
        low=finite.min().item() if finite.size else None,
        high=finite.max().item() if finite.size else None,
        counts={
            "zero": values.size - int(np.count_nonzero(values)),
            "not finite": values.size - finite.size,
        },
    )
