"""Chunks of samples that the native core reads: its tables, and the call.

The tables are NumPy arrays, laid out as the structures of core.h. A thread has a worker of its own,
with the core's buffers.
"""

from __future__ import annotations

import ctypes
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shardio.native import library

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from shardio.fields.geometry import Axis

DONE, NOT_TAKEN = 0, 1
PICTURE, VALUES, ROW, BYTES, NUMBER = range(5)
"""What a field becomes; see `enum kind` of core.h."""
LINEAR, ANTIALIASED, CUBIC_ANTIALIASED, NEAREST = range(4)
"""How a picture is resized; see `enum method` of core.h."""

VIEW = (
    *("height", "width", "orientation", "top", "left", "crop_height", "crop_width"),
    *("resized_height", "resized_width", "window_top", "window_left"),
    *("place_top", "place_left", "place_height", "place_width", "flip", "method", "shrink"),
)
"""What says how the picture of a sample fills its slot; see `struct view` of core.h."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreField:
    """What a field of the samples of a batch becomes.

    Attributes:
        kind: kind of the field.
        out: slots of the batch, uint8 [B, …]; of a NUMBER int64 [B].
        role: row of the views that is for it.
        leads: whether those views have the orientation of its pictures.
        prefix: first bytes that all members share and that are not copied, of a ROW.
        max_pixels: greatest number of pixels of a picture.
    """

    kind: int
    out: NDArray[Any]
    role: int = 0
    leads: bool = False
    prefix: bytes = b""
    max_pixels: int = 0


class _Field(ctypes.Structure):
    _fields_ = (
        ("out", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("prefix", ctypes.c_char_p),
        ("prefix_size", ctypes.c_int64),
        ("max_pixels", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("role", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
        ("leads", ctypes.c_int32),
    )


class _Samples(ctypes.Structure):
    _fields_ = (
        ("length", ctypes.c_int64),
        ("num_fields", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("files", "firsts", "offsets", "sizes", "checksums", "headers"),
                *("views", "fields", "status"),
            )
        ),
    )


class Totals(ctypes.Structure):
    """What a call of the core did: ns by stage, samples put into their slots, and their bytes."""

    _fields_ = tuple(
        (name, ctypes.c_int64) for name in ("read", "decode", "resize", "samples", "bytes")
    )
    read: int
    decode: int
    resize: int
    samples: int
    bytes: int


class _Picture(ctypes.Structure):
    _fields_ = (
        ("pixels", ctypes.c_void_p),
        ("stride", ctypes.c_ssize_t),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("channels", ctypes.c_int32),
    )


class SampleTable:
    """The samples of a batch, as the core reads them.

    Args:
        files: descriptors of the samples' shards, int32 [B], open as long as the table is in use.
        places: firsts, offsets and sizes, int64 [F, B]; checksums and headers, uint32 [F, B], or
            None where they are not known.
        views: int32 [R, B, V], by the names of VIEW. All arrays of places and views may be the
            same columns of longer tables.
        fields: form that each of the F fields takes in the batch.
        status: uint8 [B]; DONE for those to read, anything else for those to leave.

    Attributes:
        files: descriptors of the samples' shards, int32 [B].
        status: DONE for those that were read, anything else for those left.
    """

    def __init__(
        self,
        files: NDArray[np.int32],
        places: Sequence[NDArray[Any] | None],
        views: NDArray[np.int32],
        fields: Sequence[CoreField],
        status: NDArray[np.uint8],
    ) -> None:
        self.files, self.status = files, status
        records = (_Field * len(fields))(*(_record(field) for field in fields))
        arrays = files, *places, views
        length = views.strides[0] // (len(VIEW) * views.itemsize)
        for each in places:
            if each is not None and each.strides != (length * each.itemsize, each.itemsize):
                raise ValueError("the tables are not of one length")
        self._held = arrays, records, [*fields]
        addresses = [None if each is None else each.ctypes.data for each in arrays]
        self._table = _Samples(
            length, len(fields), *addresses, ctypes.addressof(records), status.ctypes.data
        )

    def probe(self, field: int, slots: range) -> NDArray[np.int32]:
        """Read the headers of the pictures in a field of some samples that are to be read.

        Returns:
            Height and width as shown, and orientation, int32 [n, 3], 0 for what the core does not
            take.
        """
        sizes = np.zeros((len(self.status), 3), np.int32)
        _worker().probe(self._table, field, slots.start, slots.stop, sizes.ctypes.data)
        return sizes[slots.start : slots.stop]

    def fill(self, start: int, stop: int, worker: Worker | None = None) -> Totals:
        """Read, verify and decode the samples [start, stop) into their slots, in this thread.

        Args:
            start: first sample.
            stop: sample behind the last one.
            worker: worker to use; None for that of this thread.
        """
        totals = Totals()
        (worker or _worker()).fill(self._table, start, stop, totals)
        return totals


def resize_linear(
    source: NDArray[np.uint8], axes: Sequence[Axis], out: NDArray[np.uint8], *, flip: bool
) -> bool:
    """Resize a picture by two taps a side, as the core does while it reads; False if it does not.

    Args:
        source: uint8 [h, w, channels] as shown, with contiguous rows: the crop's rectangle, or the
            whole picture at 1/shrink of its size.
        axes: choice of the pixels that fill the slot, along the rows and along the columns.
        out: uint8 [h, w, channels], contiguous, where the result goes.
        flip: whether to mirror it.
    """
    if library() is None or 0 in source.shape or 0 in out.shape:
        return False
    rows, columns = axes
    values = {
        "top": rows.offset,
        "crop_height": rows.length,
        "resized_height": rows.resized,
        "left": columns.offset,
        "crop_width": columns.length,
        "resized_width": columns.resized,
        "window_top": rows.window,
        "place_height": rows.kept,
        "flip": flip,
        "window_left": columns.window,
        "place_width": columns.kept,
        "method": LINEAR,
        "shrink": rows.shrink,
    }
    view = np.array([values.get(name, 0) for name in VIEW], np.int32)
    return _worker().resize(_picture(source), view.ctypes.data, _picture(out)) == DONE


def _picture(pixels: NDArray[np.uint8]) -> _Picture:
    return _Picture(pixels.ctypes.data, pixels.strides[0], *pixels.shape)


def _record(field: CoreField) -> _Field:
    shape = field.out.shape
    pixels = field.kind in (PICTURE, VALUES)
    return _Field(
        field.out.ctypes.data,
        field.out.strides[0],
        field.prefix,
        len(field.prefix),
        field.max_pixels,
        field.kind,
        field.role,
        *(shape[1:3] if pixels else (0, 0)),
        (shape[3] if len(shape) == 4 else 1),
        field.leads,
    )


class Worker:
    """Buffers of one thread.

    Args:
        core: library of the core.
    """

    def __init__(self, core: ctypes.CDLL) -> None:
        new = core.shardio_worker_new
        new.restype = ctypes.c_void_p
        self._free, self._fill = core.shardio_worker_free, core.shardio_fill
        self._probe, self._resize = core.shardio_probe, core.shardio_resize
        self._free.restype = self._fill.restype = self._probe.restype = None
        self._free.argtypes = (ctypes.c_void_p,)
        table, number = (ctypes.c_void_p, ctypes.POINTER(_Samples)), ctypes.c_int64
        self._fill.argtypes = (*table, number, number, ctypes.POINTER(Totals))
        self._probe.argtypes = (*table, number, number, number, ctypes.c_void_p)
        picture = ctypes.POINTER(_Picture)
        self._resize.argtypes = (ctypes.c_void_p, picture, ctypes.c_void_p, picture)
        self._worker = new()
        if not self._worker:
            raise MemoryError("no memory is left for the native core")

    def fill(self, table: _Samples, start: int, stop: int, totals: Totals) -> None:
        """Call shardio_fill of core.h."""
        self._fill(self._worker, table, start, stop, totals)

    def probe(self, table: _Samples, field: int, start: int, stop: int, sizes: int) -> None:
        """Call shardio_probe of core.h."""
        self._probe(self._worker, table, field, start, stop, sizes)

    def resize(self, source: _Picture, view: int, out: _Picture) -> int:
        """Call shardio_resize of core.h."""
        status: int = self._resize(self._worker, source, view, out)
        return status

    def __del__(self) -> None:
        if getattr(self, "_worker", None):
            self._free(self._worker)


_local = threading.local()


def _worker() -> Worker:
    try:
        worker: Worker = _local.worker
    except AttributeError:
        core = library()
        if core is None:
            raise RuntimeError("there is no native core") from None
        worker = _local.worker = Worker(core)
    return worker
