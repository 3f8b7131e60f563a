"""Where the time of reading goes, counted always: four clock readings a sample cost 0.5 µs.

A stopwatch follows one thread through the samples of a chunk. Each lap ends a stage, and the next
stage begins there. Whoever wants more than totals gives the dataset another stopwatch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from time import perf_counter_ns


@dataclass(slots=True)
class StageTimes:
    """Totals of one reader.

    Attributes:
        read: ns to get bytes and check them.
        decode: ns from bytes to pixels or values.
        transform: ns to crop, resize and transform.
        samples: how many were read.
        bytes: how many were read.
    """

    read: int = 0
    decode: int = 0
    transform: int = 0
    samples: int = 0
    bytes: int = 0

    def add(self, other: StageTimes) -> None:
        """Add the totals of another."""
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class Stopwatch:
    """Times the samples of a chunk, which one thread reads; it starts when it is made.

    Attributes:
        times: so far.
    """

    def __init__(self) -> None:
        self.times = StageTimes()
        self._last = 0

    def start(self) -> None:
        """The reading of a sample, or of several at once, begins."""
        self._last = perf_counter_ns()

    def read(self, size: int) -> None:
        """So many bytes are there."""
        self.times.bytes += size
        self.times.read += self._lap()

    def decoded(self) -> None:
        """A field is decoded."""
        self.times.decode += self._lap()

    def transformed(self) -> None:
        """A picture is transformed."""
        self.times.transform += self._lap()

    def stop(self, samples: int = 1) -> None:
        """So many samples are in their slots."""
        self.times.samples += samples

    def finish(self) -> StageTimes:
        """The totals, when the chunk is done."""
        return self.times

    def _lap(self) -> int:
        last, self._last = self._last, perf_counter_ns()
        return self._last - last
