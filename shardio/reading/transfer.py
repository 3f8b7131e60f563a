"""From host memory to a device, while the loop computes.

A batch is made in page-locked memory, which a device copies from on its own. The copy runs on a
stream of its own; the stream that the loop computes on waits for it, the loop's thread does not.
The memory is lent again when the copy has ended, not before. On the CPU the same steps are taken,
with nothing to copy.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from shardio.errors import UsageError
from shardio.reading.memory import Recycler


class Event(Protocol):
    """What a stream reaches when the work that came before is done; as torch.cuda.Event."""

    def query(self) -> bool:
        """Tell whether it was reached."""

    def wait(self) -> None:
        """Make the current stream wait for it."""


class Stream(Protocol):
    """A queue of work of a device."""

    def entered(self) -> AbstractContextManager[object]:
        """A context in which work is put into it."""

    def record(self) -> Event:
        """What is reached when all work put into it so far is done."""


class Moving(NamedTuple):
    """A batch on its way.

    Attributes:
        batch: entries on the device.
        done: reached when their values are there.
    """

    batch: dict[str, Any]
    done: Event


class Transfer:
    """Copies batches to a device.

    Args:
        device: such as "cuda", "cuda:1" or "cpu".

    Attributes:
        allocate: makes the host memory that batches are copied from.

    Raises:
        UsageError: there is no such device.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = _find(device)
        cuda = self._device.type == "cuda"
        self.allocate = Recycler(_make_pinned if cuda else None)
        self._stream: Stream = _CudaStream(self._device) if cuda else _NoStream()
        self._copying: deque[tuple[Event, dict[str, Any]]] = deque()

    def begin(self, batch: dict[str, Any]) -> Moving:
        """Start to copy a batch; its memory is held until the copy has ended."""
        while self._copying and self._copying[0][0].query():
            self._copying.popleft()
        with self._stream.entered():
            moved = {name: self._move(value) for name, value in batch.items()}
        done = self._stream.record()
        self._copying.append((done, batch))
        return Moving(moved, done)

    def deliver(self, moving: Moving) -> dict[str, Any]:
        """The batch, for the stream that the loop computes on."""
        moving.done.wait()
        if self._device.type == "cuda":
            stream = torch.cuda.current_stream(self._device)
            for value in moving.batch.values():
                if isinstance(value, torch.Tensor):
                    value.record_stream(stream)
        return moving.batch

    def _move(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        return value.to(self._device, non_blocking=True)


class _CudaStream:
    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def entered(self) -> AbstractContextManager[object]:
        return torch.cuda.stream(self._stream)

    def record(self) -> Event:
        event: Event = self._stream.record_event()
        return event


class _NoStream:
    """Of a device whose copies have ended when they return."""

    def entered(self) -> AbstractContextManager[object]:
        return nullcontext()

    def record(self) -> Event:
        return _Reached()


class _Reached:
    def query(self) -> bool:
        return True

    def wait(self) -> None:
        pass


def _find(device: torch.device | str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"device={str(device)!r} cannot be used here: {reason}") from error
    return found


def _make_pinned(size: int) -> NDArray[np.uint8]:
    pinned: NDArray[np.uint8] = torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
    return pinned
