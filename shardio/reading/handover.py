"""Memory for batches, lent again and again, in one process and between two.

New memory costs a page fault for each of its pages, and a batch of photos has thousands. So the
memory of a batch that nobody holds any more is lent again: each tensor keeps a small array alive
that stands for the loan, and its end gives the memory back. A batch may be kept for any time; then
other memory is taken.

For a batch of a worker process, torch gives each tensor a shared file of its own: its pages are
new, so both processes fault on them, and its descriptor goes through a socket. Here a worker keeps
segments of shared memory. The first time that one is sent, torch sends its descriptor; the training
process keeps it mapped, and later batches name its number alone. When the last tensor in it dies
there, a byte in the segment says so, and the worker fills it again. What a process held when it
forked is never filled again, since its fork holds it too. Tensors that a worker's own code has made
of a batch, torch sends as ever: to torch the memory is not shared, so it sends a copy.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from math import prod
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch.multiprocessing import get_sharing_strategy

from shardio.errors import ShardioError, UsageError, argument, counted, quoted
from shardio.processes import is_alive, new_lock
from shardio.reading.kinds import BITS, as_array, as_tensor, map_values
from shardio.storage.local import reserve

Batches = Generator[dict[str, Any], None, None]

_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
MOST_SAMPLES = _MEMORY // 100
"""Samples whose keys and places alone take more memory than the machine has."""
_LEAST_LENT = 1 << 16  # bytes; less is not worth the keeping


class Allocate(Protocol):
    """Makes contiguous tensors to fill."""

    def __call__(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, entry: str = ""
    ) -> torch.Tensor:
        """Make a tensor.

        Args:
            shape: shape of the tensor.
            dtype: dtype of the tensor.
            entry: entry of a batch that the tensor is for.

        Raises:
            ShardioError: there is no memory for it.
        """


def _no_memory(entry: str, samples: int, size: int) -> ShardioError:
    return ShardioError(
        f"there is no memory for the {size:,} bytes of {quoted(entry)} in a batch of "
        f"{counted(samples, 'sample')}",
        remedy=f"give a smaller {argument('batch_size')}, or a transform to a smaller size",
    )


class Recycler:
    """Thread-safe pool of reusable memory; an Allocate.

    Args:
        make: function that makes new memory, uint8 [size].
    """

    def __init__(self, make: Callable[[int], NDArray[np.uint8]] | None = None) -> None:
        self._make = make or _make
        self._free: defaultdict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def __call__(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, entry: str = ""
    ) -> torch.Tensor:
        """See Allocate."""
        size = prod(shape) * dtype.itemsize
        if size < _LEAST_LENT:
            return torch.empty(shape, dtype=dtype)
        free = self._free[size]
        try:
            memory = free.pop()
        except IndexError:
            memory = self._new(size, entry, shape[0])
        is_plain = dtype is torch.uint8  # NumPy's reshape is faster than two views of torch
        loan = memory.reshape(shape) if is_plain else memory[:]
        ending = weakref.finalize(loan, free.append, memory)
        ending.atexit = False  # type: ignore[misc]  # typeshed takes it for read-only
        lent = torch.from_numpy(loan)
        return lent if is_plain else lent.view(dtype).view(shape)

    def _new(self, size: int, entry: str, samples: int) -> NDArray[np.uint8]:
        if size > _MEMORY:  # which would end the process by a signal when it is filled
            raise _no_memory(entry, samples, size)
        try:
            return self._make(size)
        except (MemoryError, RuntimeError) as error:  # torch's, of page-locked memory
            raise _no_memory(entry, samples, size) from error


def _make(size: int) -> NDArray[np.uint8]:
    return np.empty(size, np.uint8)


_HEADER = 64  # bytes of a segment before its data
_HELD, _MAPPED, _ENDED = 0, 1, 2
"""Places in the header: the receiver holds tensors in it or will; has it mapped; nobody will fill
it again."""
_LEAST_SHARED = 1 << 16  # bytes; less is quicker sent than shared
_MOST_FREE = 8  # segments that nobody holds, and that are kept
_SENT = frozenset({torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool})
_SENT |= {torch.float16, torch.float32, torch.float64, *BITS}
_numbers = itertools.count()
_untyped: Any = torch.UntypedStorage  # torch's types lack what its own reductions call


class HandedOver(dict[str, Any]):
    """A batch that a DataLoader's worker sends to the training process; there it is a dict.

    Attributes:
        sender: sender of its memory.
        as_tuple: whether it becomes a tuple of its values there.
    """

    sender: Sender | None = None
    as_tuple = False

    def __copy__(self) -> HandedOver:
        copied = HandedOver(self)
        copied.sender, copied.as_tuple = self.sender, self.as_tuple
        return copied

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (dict(self),)


class Sender:
    """The segments of a worker's loop; an Allocate, for any number of threads."""

    def __init__(self) -> None:
        self._name = os.getpid(), next(_numbers)
        self._segments: list[_Segment] = []
        self._lock = new_lock()
        ending = weakref.finalize(self, _end, self._segments, os.getpid())
        ending.atexit = False  # type: ignore[misc]  # typeshed takes it for read-only

    def __call__(
        self, shape: tuple[int, ...], dtype: torch.dtype, *, entry: str = ""
    ) -> torch.Tensor:
        """See Allocate."""
        size = prod(shape) * dtype.itemsize
        if size < _LEAST_SHARED:
            return torch.empty(shape, dtype=dtype)
        if size > _MEMORY:
            raise _no_memory(entry, shape[0], size)
        with self._lock:
            segment = self._take(size)
            segment.filling, segment.sent = True, False
            _used.add(segment)
        loan = segment.memory[_HEADER : _HEADER + size]
        ending = weakref.finalize(loan, segment.end_filling)
        ending.atexit = False  # type: ignore[misc]
        return torch.from_numpy(loan).view(dtype).view(shape)

    def send(self, loop: Batches, *, as_tuple: bool = False) -> Batches:
        """Yield the batches of a loop, so that memory comes back from the training process.

        Args:
            loop: loop of this worker.
            as_tuple: whether the batches become tuples in the training process.
        """
        with closing(loop):
            for batch in loop:
                place = [HandedOver(batch)]  # only the caller keeps a batch
                place[0].sender, place[0].as_tuple = self, as_tuple
                del batch
                yield place.pop()

    def pack(self, batch: dict[str, Any]) -> _Packed:
        """Describe the tensors of a batch, to be pickled once."""
        segments: dict[int, torch.UntypedStorage | None] = {}
        others: list[Any] = []

        def pack(value: Any) -> Any:
            if not _is_plain(value):
                others.append(value)
                return value
            segment = self._find(value)
            if segment is None:
                return _Small.of(value) if value.nbytes < _LEAST_SHARED else value
            if segment.sent and segment.number not in segments:
                return value
            known = bool(segment.memory[_MAPPED])
            segments[segment.number] = None if known else segment.storage
            segment.sent, segment.memory[_HELD] = True, 1
            return _describe(value, segment)

        values = {name: map_values(pack, value) for name, value in batch.items()}
        for value in others:
            _check_sendable(value)
        changed = [name for name, value in batch.items() if values[name] is not value]
        return _Packed(self._name, segments, values, changed)

    def _take(self, size: int) -> _Segment:
        """Take or make a segment that nobody holds; few of the others are kept."""
        self._segments[:] = [part for part in self._segments if not part.memory[_ENDED]]
        free = [segment for segment in self._segments if segment.is_free()]
        fitting = [segment for segment in free if size <= segment.room <= 2 * size]
        chosen = min(fitting, key=lambda segment: segment.room, default=None)
        others = [segment for segment in free if segment is not chosen]
        for segment in others[:-_MOST_FREE]:
            segment.memory[_ENDED] = 1
            self._segments.remove(segment)
        if chosen is not None:
            return chosen
        whole = -(-(_HEADER + size) // _HEADER) * _HEADER  # any dtype divides it
        storage: torch.UntypedStorage = _new_shared(whole)
        memory = _memory_of(storage)
        memory[:_HEADER] = 0
        segment = _Segment(next(_numbers), storage, memory)
        self._segments.append(segment)
        return segment

    def _find(self, tensor: torch.Tensor) -> _Segment | None:
        address = tensor.data_ptr()
        for segment in [*self._segments]:
            start = segment.storage.data_ptr()
            if start <= address < start + len(segment.memory):
                return segment
        return None


@dataclass(eq=False)
class _Segment:
    """Shared memory of a worker.

    Attributes:
        number: number of the segment in the process.
        storage: torch's storage of the memory.
        memory: same memory, uint8 [64 + size].
        filling: whether this process holds tensors in it.
        sent: whether these tensors were sent.
        forked: whether a fork of this process holds them.
    """

    number: int
    storage: torch.UntypedStorage
    memory: NDArray[np.uint8]
    filling: bool = False
    sent: bool = False
    forked: bool = False

    @property
    def room(self) -> int:
        """Bytes that tensors may take."""
        return len(self.memory) - _HEADER

    def is_free(self) -> bool:
        """Tell whether nobody holds tensors in it."""
        return not (self.filling or self.forked or self.memory[_HELD])

    def end_filling(self) -> None:
        """Note that no tensor of this process lies in it any more."""
        self.filling = False
        _used.discard(self)


class _Small(NamedTuple):
    """A tensor that is sent by value.

    Attributes:
        array: array with the axes in the order of memory.
        axes: axis in the array of each axis of the tensor.
    """

    array: NDArray[Any]
    axes: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Small:
        """Describe a tensor."""
        strides = tensor.stride()
        order = sorted(range(tensor.ndim), key=lambda axis: -strides[axis])
        axes = tuple(order.index(axis) for axis in range(tensor.ndim))
        return cls(as_array(tensor.permute(order)), axes)


class _Location(NamedTuple):
    """Location of a tensor in a segment."""

    segment: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int


class _Packed(NamedTuple):
    """Pickled form of a batch.

    Attributes:
        sender: process of the sender, and its number there.
        segments: storage of each segment by number; None for those that the receiver has.
        values: entries of the batch, with described tensors.
        described: names of the entries that have some.
    """

    sender: tuple[int, int]
    segments: dict[int, torch.UntypedStorage | None]
    values: dict[str, Any]
    described: list[str]


@dataclass(eq=False)
class _Loan:
    """A batch's memory in the process that received it.

    Attributes:
        key: sender and number of the segment.
        memory: memory of the segment.
        forked: whether a fork of this process holds it, too.
    """

    key: tuple[tuple[int, int], int]
    memory: NDArray[np.uint8]
    forked: bool = False


_mapped: dict[tuple[tuple[int, int], int], NDArray[np.uint8]] = {}
"""The memory that this process has received, by sender and number."""
_used: set[_Loan | _Segment] = set()
"""Memory that this process holds tensors in, received or to be sent."""


def _before_fork() -> None:
    for used in [*_used]:
        used.forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork)


def _reduce(batch: HandedOver) -> tuple[Any, ...]:
    if batch.sender is None:
        return dict, (dict(batch),)
    try:
        return _receive, (*batch.sender.pack(batch), batch.as_tuple)
    except UsageError as error:
        return _fail, (str(error),)


def _check_sendable(value: Any) -> None:
    """Raise UsageError for a value that torch's queue would drop, and its loop wait for."""
    if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
        return
    try:
        ForkingPickler.dumps(value)
    except Exception as error:  # of whatever the value is; the queue's thread would swallow it
        raise UsageError(
            f"a {type(value).__name__} of a batch cannot go from its worker to the training "
            f"process: {type(error).__name__}: {error}",
            remedy="return other values from map= or collate=, or read with threads, by a Loader",
        ) from error


def _fail(message: str) -> None:
    """Raise in the training process what prevented a worker from sending a batch."""
    raise UsageError(message)


def _receive(
    sender: tuple[int, int],
    segments: dict[int, torch.UntypedStorage | None],
    values: dict[str, Any],
    described: list[str],
    as_tuple: bool,
) -> dict[str, Any] | tuple[Any, ...]:
    """Unpack a batch in the process that receives it."""
    loans: dict[int, NDArray[np.uint8]] = {}
    for number, storage in segments.items():
        key = sender, number
        if storage is not None:
            _mapped[key] = _memory_of(storage)
            _mapped[key][_MAPPED] = 1
        if key not in _mapped:
            raise UsageError(
                "the memory of a batch is not here: its worker has ended, or the worker "
                "has sent batches to two processes",
                remedy="let it send dict(batch) to the other one",
            )
        loan = _Loan(key, _mapped[key])
        _used.add(loan)
        loans[number] = loan.memory[_HEADER:]
        ending = weakref.finalize(loans[number], _give_back, loan)
        ending.atexit = False  # type: ignore[misc]
    unpack = partial(_unpack, loans)
    batch = values | {name: map_values(unpack, values[name]) for name in described}
    return (*batch.values(),) if as_tuple else batch


def _unpack(loans: dict[int, NDArray[np.uint8]], value: Any) -> Any:
    if isinstance(value, _Small):
        return as_tensor(value.array).permute(value.axes)
    if isinstance(value, _Location):
        memory = torch.from_numpy(loans[value.segment]).view(value.dtype)
        return memory.as_strided(value.shape, value.strides, value.offset)
    return value


def _give_back(loan: _Loan) -> None:
    """Let the worker fill a segment again, and let go of those that no worker fills any more."""
    _used.discard(loan)
    if loan.forked:
        loan.memory[_ENDED] = 1
        _mapped.pop(loan.key, None)
        return
    loan.memory[_HELD] = 0
    alive = {process: is_alive(process) for process in {sender[0] for sender, _ in [*_mapped]}}
    for key, found in [*_mapped.items()]:
        if not alive.get(key[0][0], True) or (found[_ENDED] and not found[_HELD]):
            _mapped.pop(key, None)


def _end(segments: list[_Segment], worker: int) -> None:
    """Say in the segments of a sender that they will not be filled again."""
    if os.getpid() == worker:
        for segment in segments:
            segment.memory[_ENDED] = 1


def _is_plain(value: Any) -> bool:
    """Tell whether a value is a tensor that its memory, shape and strides describe in full."""
    return (
        type(value) is torch.Tensor
        and value.dtype in _SENT
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.requires_grad or value.is_neg())
    )


def _describe(tensor: torch.Tensor, segment: _Segment) -> _Location:
    offset = tensor.data_ptr() - segment.storage.data_ptr() - _HEADER
    return _Location(
        segment.number,
        tensor.dtype,
        tuple(tensor.shape),
        tuple(tensor.stride()),
        offset // tensor.dtype.itemsize,
    )


def _new_shared(size: int) -> Any:
    """Make shared memory that torch can send.

    Memory of a file without a name is not limited by the size of /dev/shm, which is 64 MB in a
    container, and leaves nothing there. torch sends it if it sends descriptors; where it does
    not, or there are no such files, torch makes the memory as for its own tensors.

    Raises:
        ShardioError: there is no memory.
    """
    try:
        if not hasattr(os, "memfd_create") or get_sharing_strategy() != "file_descriptor":
            return _untyped._new_shared(size)
        descriptor = os.memfd_create("shardio", os.MFD_CLOEXEC)
        try:
            reserve(descriptor, size)
            return _untyped._new_shared_fd_cpu(descriptor, size)
        finally:
            os.close(descriptor)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ShardioError(
            f"a worker process got no shared memory for {size:,} bytes of a batch ({reason})",
            remedy=(
                f"use fewer workers, a smaller prefetch_factor or {argument('batch_size')}, or "
                "shardio.Loader, whose threads need none; if /dev/shm is full, make it "
                "larger (docker run --shm-size=8g)"
            ),
        ) from error


def _memory_of(storage: torch.UntypedStorage) -> NDArray[np.uint8]:
    memory: NDArray[np.uint8] = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return memory


ForkingPickler.register(HandedOver, _reduce)
