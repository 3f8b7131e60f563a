"""The entries of a batch while it is filled: one column a field, one slot a sample.

Threads fill different slots at once.

Images with a sized transform go straight from the decoder's scratch buffer into their slot.
Other arrays set the column's shape and dtype with the first one that comes. Everything else is
a list. In a worker process the slots lie in shared memory, so that the finished batch is handed
to the training process without another copy.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.codecs.image import Scratch, decode_image
from shardio.codecs.probe import probe_image
from shardio.codecs.registry import decode_field
from shardio.errors import CodecError, TransformError, UsageError
from shardio.reading.shards import FieldBytes
from shardio.reading.times import StageTimes
from shardio.transforms import SizedTransform, write_crop

Transform = SizedTransform | Callable[[torch.Tensor], Any]


class Column(Protocol):
    """One entry of a batch."""

    def put(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], times: StageTimes
    ) -> None:
        """Decode a field of a sample into its slot, and count the time.

        Raises:
            CodecError: the bytes do not decode.
            TransformError: the transform raised.
            UsageError: the value does not fit into one array with the others.
        """

    def forget(self, slot: int) -> None:
        """Let nothing of a slot's value remain, as another sample takes it."""

    def collect(self) -> Any:
        """The finished entry."""


class SizedImages:
    """Images of one size, uint8 [B, 3, h, w] in channels-last memory."""

    def __init__(
        self,
        slots: int,
        transform: SizedTransform,
        scratch: Scratch,
        *,
        shared: bool,
    ) -> None:
        self._transform = transform
        self._scratch = scratch
        self._batch = empty((slots, *transform.size, 3), torch.uint8, shared=shared)
        self._slots: NDArray[np.uint8] = self._batch.numpy()

    def put(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], times: StageTimes
    ) -> None:
        """See Column."""
        start = perf_counter_ns()
        info = probe_image(stored.data)
        pixels = decode_image(stored.data, info, scratch=self._scratch)
        decoded = perf_counter_ns()
        crop = self._transform.crop(info.height, info.width, uniforms)
        write_crop(pixels, crop, self._slots[slot])
        times.decode += decoded - start
        times.transform += perf_counter_ns() - decoded

    def forget(self, slot: int) -> None:
        """See Column."""

    def collect(self) -> torch.Tensor:
        """See Column."""
        return self._batch.permute(0, 3, 1, 2)


class Arrays:
    """Values of one shape and dtype, a tensor [B, …]; images are [B, 3, H, W]."""

    def __init__(
        self,
        slots: int,
        transform: Callable[[torch.Tensor], Any] | None,
        *,
        image: bool,
        shared: bool,
    ) -> None:
        self._num_slots = slots
        self._transform = transform
        self._image = image
        self._shared = shared
        self._batch: torch.Tensor | None = None
        self._filled: set[int] = set()
        self._lock = threading.Lock()

    def put(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], times: StageTimes
    ) -> None:
        """See Column."""
        del uniforms
        start = perf_counter_ns()
        value = _to_tensor(
            decode_image(stored.data) if self._image else decode_field(stored.field, stored.data)
        )
        if self._image:
            value = value.permute(2, 0, 1)
        decoded = perf_counter_ns()
        if self._transform is not None:
            value = _apply(self._transform, value)
        times.decode += decoded - start
        times.transform += perf_counter_ns() - decoded
        self._place(slot, value)

    def forget(self, slot: int) -> None:
        """See Column."""
        with self._lock:
            self._filled.discard(slot)
            if not self._filled:
                self._batch = None

    def collect(self) -> torch.Tensor | None:
        """See Column."""
        return self._batch

    def _place(self, slot: int, value: torch.Tensor) -> None:
        with self._lock:
            if self._batch is None:
                self._batch = self._allocate(value)
            batch = self._batch
            self._filled.add(slot)
        if value.shape != batch.shape[1:] or value.dtype != batch.dtype:
            wanted = "×".join(map(str, batch.shape[1:]))
            found = "×".join(map(str, value.shape))
            raise UsageError(
                f"it is {found} {value.dtype}, others of the batch are {wanted} "
                f"{batch.dtype}; give a transform that makes them equal, such as "
                "shardio.RandomResizedCrop(224), or read samples without batch_size"
            )
        batch[slot] = value

    def _allocate(self, value: torch.Tensor) -> torch.Tensor:
        if self._image and value.ndim == 3:
            channels, height, width = value.shape
            shape = (self._num_slots, height, width, channels)
            return empty(shape, value.dtype, shared=self._shared).permute(0, 3, 1, 2)
        return empty((self._num_slots, *value.shape), value.dtype, shared=self._shared)


class Values:
    """Anything else, a list of B values; undecoded fields stay bytes."""

    def __init__(self, slots: int, *, decode: bool) -> None:
        self._values: list[Any] = [None] * slots
        self._decode = decode

    def put(
        self, slot: int, stored: FieldBytes, uniforms: Sequence[float], times: StageTimes
    ) -> None:
        """See Column."""
        del uniforms
        start = perf_counter_ns()
        field, data = stored
        self._values[slot] = decode_field(field, data) if self._decode else data
        times.decode += perf_counter_ns() - start

    def forget(self, slot: int) -> None:
        """See Column."""
        self._values[slot] = None

    def collect(self) -> list[Any]:
        """See Column."""
        return self._values


def _apply(transform: Callable[[torch.Tensor], Any], value: torch.Tensor) -> torch.Tensor:
    try:
        return torch.as_tensor(transform(value)).detach()
    except Exception as error:
        raise TransformError(f"the transform raised {type(error).__name__}: {error}") from error


def _to_tensor(value: object) -> torch.Tensor:
    array = np.asarray(value)
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError as error:
        raise CodecError(
            f"torch has no dtype for {array.dtype}; read the field with decode=False"
        ) from error


def empty(shape: Sequence[int], dtype: torch.dtype, *, shared: bool) -> torch.Tensor:
    """An array to fill, contiguous, in shared memory if asked."""
    if not shared:
        return torch.empty(tuple(shape), dtype=dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    # What torch's own collate calls; share_memory_() would copy the empty slots first.
    storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(size)
    tensor = torch.empty(0, dtype=dtype)
    return tensor.set_(storage, 0, torch.Size(shape), _strides(shape))


def _strides(shape: Sequence[int]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))]
