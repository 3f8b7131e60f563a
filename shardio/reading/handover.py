"""Batches from a worker process to the training process, through memory that is lent again.

torch gives each tensor of each batch a shared file of its own: its pages are new, so that both
processes fault on them, and its descriptor goes through a socket. Here a worker keeps segments of
shared memory. The first time that one is sent, torch sends its descriptor; the training process
keeps it mapped, and later batches name its number alone. When the last tensor in it dies there,
a byte in the segment says so, and the worker fills it again. A batch may be kept as long as one
likes: the worker then takes another segment. No file has a name, so nothing is left behind,
however the processes end.

What a worker's own code has made of a batch, and what it sends in other ways, torch sends as ever:
to torch the memory is not shared, so it sends a copy.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import defaultdict
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from math import prod
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Loop = Generator[dict[str, Any], None, None]
_HEADER = 64  # bytes of a segment before its data
_HELD, _MAPPED, _ENDED = 0, 1, 2
"""Places in the header: the receiver holds tensors in it or will; has it mapped; the loop ended."""
_LEAST_SHARED = 1 << 16  # bytes; less is quicker sent than shared
_SENT = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool})
_SENT |= {torch.float16, torch.float32, torch.float64}
_numbers = itertools.count()


class HandedOver(dict[str, Any]):
    """A batch that a DataLoader's worker sends to the training process; there it is a dict.

    Attributes:
        sender: of its memory.
    """

    sender: Sender | None = None

    def __copy__(self) -> HandedOver:
        copied = HandedOver(self)
        copied.sender = self.sender
        return copied

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class Sender:
    """The segments of a worker's loop; an Allocate."""

    def __init__(self) -> None:
        self._name = os.getpid(), next(_numbers)
        self._segments: defaultdict[int, list[_Segment]] = defaultdict(list)
        ending = weakref.finalize(self, _end, self._segments, os.getpid())
        ending.atexit = False  # type: ignore[misc]  # typeshed takes it for read-only

    def __call__(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See Allocate."""
        size = prod(shape) * dtype.itemsize
        if size < _LEAST_SHARED:
            return torch.empty(shape, dtype=dtype)
        segment = self._take(size)
        segment.filling, segment.sent = True, False
        loan = segment.memory[_HEADER:]
        ending = weakref.finalize(loan, segment.end_filling)
        ending.atexit = False  # type: ignore[misc]
        return torch.from_numpy(loan).view(dtype).view(shape)

    def send(self, loop: Loop) -> Loop:
        """The batches of a loop, so that its memory comes back from the training process."""
        with closing(loop):
            for batch in loop:
                place = [HandedOver(batch)]  # only the caller keeps a batch
                place[0].sender = self
                del batch
                yield place.pop()

    def pack(self, batch: dict[str, Any]) -> _Packed:
        """A batch with its tensors described, to be pickled once."""
        segments: dict[int, torch.UntypedStorage | None] = {}
        values = dict(batch)
        for name, value in batch.items():
            if type(value) is not torch.Tensor or value.dtype not in _SENT or value.requires_grad:
                continue
            segment = self._find(value)
            if segment is None:
                if value.nbytes < _LEAST_SHARED:
                    values[name] = _Small.of(value)
            elif segment.number in segments or not segment.sent:
                known = bool(segment.memory[_MAPPED])
                segments[segment.number] = None if known else segment.storage
                segment.sent, segment.memory[_HELD] = True, 1
                values[name] = _describe(value, segment)
        return _Packed(self._name, segments, values)

    def _take(self, size: int) -> _Segment:
        for segment in self._segments[size]:
            if not segment.filling and not segment.memory[_HELD]:
                return segment
        # What torch's own collate calls; share_memory_() would copy the empty memory first.
        storage: torch.UntypedStorage = torch.UntypedStorage._new_shared(_HEADER + size)
        memory = _memory_of(storage)
        memory[:_HEADER] = 0
        segment = _Segment(next(_numbers), storage, memory)
        self._segments[size].append(segment)
        return segment

    def _find(self, tensor: torch.Tensor) -> _Segment | None:
        address = tensor.data_ptr()
        for segment in itertools.chain.from_iterable(self._segments.values()):
            start = segment.storage.data_ptr()
            if start <= address < start + len(segment.memory):
                return segment
        return None


@dataclass(slots=True, eq=False)
class _Segment:
    """Shared memory of a worker.

    Attributes:
        number: tells it from others of the process.
        storage: as torch sends it.
        memory: the same, uint8 [64 + size].
        filling: this process holds tensors in it.
        sent: they were sent.
    """

    number: int
    storage: torch.UntypedStorage
    memory: NDArray[np.uint8]
    filling: bool = False
    sent: bool = False

    def end_filling(self) -> None:
        """No tensor of this process lies in it any more."""
        self.filling = False


class _Small(NamedTuple):
    """A tensor that is sent by value.

    Attributes:
        array: with the axes in the order of memory.
        axes: of the tensor, in the array.
    """

    array: NDArray[Any]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Small:
        """Describe a tensor."""
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
        axes = tuple(order.index(axis) for axis in range(tensor.ndim))
        return cls(tensor.permute(order).numpy(), axes)


class _Place(NamedTuple):
    """Where a tensor lies in a segment."""

    segment: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class _Packed(NamedTuple):
    """What is pickled of a batch.

    Attributes:
        sender: its process, and its number there.
        segments: by number; None for those that the receiver has.
        values: of the batch; tensors are described.
    """

    sender: tuple[int, int]
    segments: dict[int, torch.UntypedStorage | None]
    values: dict[str, Any]


_mapped: dict[tuple[tuple[int, int], int], NDArray[np.uint8]] = {}
"""The memory that this process has received, by sender and number."""


def _reduce(batch: HandedOver) -> tuple[Any, ...]:
    if batch.sender is None:
        return dict, (dict(batch),)
    return _receive, tuple(batch.sender.pack(batch))


def _receive(
    sender: tuple[int, int],
    segments: dict[int, torch.UntypedStorage | None],
    values: dict[str, Any],
) -> dict[str, Any]:
    """Unpack a batch in the process that receives it."""
    loans: dict[int, NDArray[np.uint8]] = {}
    for number, storage in segments.items():
        if storage is not None:
            memory = _mapped[sender, number] = _memory_of(storage)
            memory[_MAPPED] = 1
        memory = _mapped[sender, number]
        loans[number] = loan = memory[_HEADER:]
        ending = weakref.finalize(loan, _give_back, memory, os.getpid())
        ending.atexit = False  # type: ignore[misc]
    return {name: _unpack(value, loans) for name, value in values.items()}


def _unpack(value: Any, loans: dict[int, NDArray[np.uint8]]) -> Any:
    if isinstance(value, _Small):
        return torch.from_numpy(value.array).permute(value.axes)
    if isinstance(value, _Place):
        memory = torch.from_numpy(loans[value.segment]).view(value.dtype)
        return memory.as_strided(value.shape, value.strides, value.offset)
    return value


def _give_back(memory: NDArray[np.uint8], receiver: int) -> None:
    """Let the worker fill a segment again, and let go of those that no worker fills any more."""
    if os.getpid() != receiver:  # a fork of it, where the same tensors die again
        return
    memory[_HELD] = 0
    alive = {process: _is_alive(process) for process in {sender[0] for sender, _ in [*_mapped]}}
    for key, found in [*_mapped.items()]:
        if not alive.get(key[0][0], True) or (found[_ENDED] and not found[_HELD]):
            _mapped.pop(key, None)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


def _end(segments: dict[int, list[_Segment]], worker: int) -> None:
    """Say in the segments of a sender that they will not be filled again."""
    if os.getpid() == worker:
        for segment in itertools.chain.from_iterable(segments.values()):
            segment.memory[_ENDED] = 1


def _describe(tensor: torch.Tensor, segment: _Segment) -> _Place:
    offset = tensor.data_ptr() - segment.storage.data_ptr() - _HEADER
    return _Place(
        segment.number,
        tensor.dtype,
        tuple(tensor.shape),
        tuple(tensor.stride()),
        offset // tensor.dtype.itemsize,
    )


def _memory_of(storage: torch.UntypedStorage) -> NDArray[np.uint8]:
    memory: NDArray[np.uint8] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return memory


ForkingPickler.register(HandedOver, _reduce)
