"""References to batches: which columns a batch has, and what fills them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardio.codecs.image import Scratch
from shardio.codecs.registry import kind_of
from shardio.plan.epoch import References
from shardio.plan.shuffle import uniforms
from shardio.reading.batch import Batch, Delivery
from shardio.reading.columns import (
    Arrays,
    Column,
    Labels,
    SizedImages,
    StackedArrays,
    Transform,
    Transformed,
    Values,
)
from shardio.reading.memory import Allocate
from shardio.reading.rows import Gatherer
from shardio.transforms import SizedTransform

_HOLDS = {"cls": "a tensor", "npy": "a tensor", "image": "a tensor", "pixels": "a tensor"}
_HOLDS |= {"txt": "text", "json": "values of JSON"}


def describe_entry(field: str, *, decode: bool) -> str:
    """Say what a batch holds for an entry that a field fills: a tensor, or values of which kind.

    Args:
        field: name of the field.
        decode: False leaves every field as bytes.
    """
    return _HOLDS.get(kind_of(field), "bytes") if decode else "bytes"


class SampleReader:
    """Makes batches of references.

    Args:
        delivery: how samples are read.
        decode: False leaves every field as bytes.
        transform: for images.
        reduced: let large JPEGs be decoded at a part of their size.
        max_pixels: greatest number of pixels of an image.
        allocate: makes the arrays of batches.
    """

    def __init__(
        self,
        delivery: Delivery,
        *,
        decode: bool,
        transform: Transform | None,
        reduced: bool,
        max_pixels: int,
        allocate: Allocate,
    ) -> None:
        self._delivery = delivery
        self._decode = decode
        self._transform = transform
        self._draws = transform.draws if isinstance(transform, SizedTransform) else 0
        self._reduced = reduced
        self._max_pixels = max_pixels
        self._allocate = allocate
        self._scratch = Scratch()
        self._gatherer = Gatherer(delivery.pool, tuple(delivery.fields.values()))
        self._makers = {name: self._column(found[0]) for name, found in delivery.fields.items()}

    def start(self, references: References, key: int) -> Batch:
        """A batch with empty slots.

        Args:
            references: of n samples.
            key: of the random numbers for transforms, equal in all processes of an epoch.
        """
        columns = self.columns(len(references))
        numbers = self.numbers(references, key)
        return Batch(self._delivery, self._gatherer, references, columns, numbers)

    def columns(self, slots: int) -> dict[str, Column]:
        """The entries of a batch, empty."""
        return {name: make(slots) for name, make in self._makers.items()}

    def numbers(self, references: References, key: int) -> NDArray[np.float64]:
        """Random numbers for the transforms, float64 [n, draws]; see start."""
        return uniforms(key, references.positions, self._draws)

    def _column(self, field: str) -> Callable[[int], Column]:
        """What makes the column of an entry that a field and its like fill, of that many slots."""
        kind = kind_of(field) if self._decode else "bytes"
        transform = self._transform if kind in {"image", "pixels"} else None
        kept: dict[str, Any] = {"max_pixels": self._max_pixels, "allocate": self._allocate}
        if isinstance(transform, SizedTransform):
            return partial(
                SizedImages,
                transform=transform,
                scratch=self._scratch,
                reduced=self._reduced,
                **kept,
            )
        if transform is not None:
            return partial(Transformed, transform=transform, **kept)
        if kind == "cls":
            return Labels
        if kind in {"pixels", "npy"}:
            return partial(StackedArrays, image=kind == "pixels", **kept)
        if kind == "image":
            return partial(Arrays, image=True, **kept)
        return partial(Values, decode=self._decode)
