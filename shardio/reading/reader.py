"""References to batches: which columns a batch has, and what fills them."""

from __future__ import annotations

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
from shardio.transforms import SizedTransform


class SampleReader:
    """Makes batches of references.

    Args:
        delivery: how samples are read.
        decode: False leaves every field as bytes.
        transform: for images.
        reduced: let large JPEGs be decoded at a part of their size.
        allocate: makes the arrays of batches.
    """

    def __init__(
        self,
        delivery: Delivery,
        *,
        decode: bool,
        transform: Transform | None,
        reduced: bool,
        allocate: Allocate,
    ) -> None:
        self._delivery = delivery
        self._decode = decode
        self._transform = transform
        self._reduced = reduced
        self._allocate = allocate
        self._scratch = Scratch()

    def start(self, references: References, key: int) -> Batch:
        """A batch with empty slots.

        Args:
            references: of n samples.
            key: of the random numbers for transforms, equal in all processes of an epoch.
        """
        columns = {name: self._column(name, len(references)) for name in self._delivery.fields}
        draws = self._transform.draws if isinstance(self._transform, SizedTransform) else 0
        numbers = uniforms(key, references.positions, draws)
        return Batch(self._delivery, references, columns, numbers)

    def _column(self, name: str, slots: int) -> Column:
        kind = kind_of(self._delivery.fields[name][0]) if self._decode else "bytes"
        transform = self._transform if kind in {"image", "pixels"} else None
        if isinstance(transform, SizedTransform):
            return SizedImages(
                slots,
                transform,
                self._scratch,
                reduced=self._reduced,
                allocate=self._allocate,
            )
        if transform is not None:
            return Transformed(slots, transform, allocate=self._allocate)
        if kind == "cls":
            return Labels(slots)
        if kind in {"pixels", "npy"}:
            return StackedArrays(slots, image=kind == "pixels", allocate=self._allocate)
        if kind == "image":
            return Arrays(slots, image=True, allocate=self._allocate)
        return Values(slots, decode=self._decode)
