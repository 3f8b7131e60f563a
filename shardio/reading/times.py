"""Where the time of reading goes, counted always: four clock readings a sample cost 0.5 µs.

A stopwatch follows one thread through the samples of a chunk. Each reading of the clock ends a
stage and begins the next. `ShardDataset.timed_by` takes another stopwatch, for more than totals.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter_ns


@dataclass(slots=True)
class StageTimes:
    """Totals of one reader.

    Attributes:
        read: ns to get bytes and check them.
        decode: ns from bytes to pixels or values.
        transform: ns to crop, resize and transform.
        map: ns in the user's functions on whole samples, and to place what they return.
        samples: number of samples read.
        bytes: number of bytes read.
    """

    read: int = 0
    decode: int = 0
    transform: int = 0
    map: int = 0
    samples: int = 0
    bytes: int = 0

    def add(self, other: StageTimes) -> None:
        """Add the totals of another."""
        self.read += other.read
        self.decode += other.decode
        self.transform += other.transform
        self.map += other.map
        self.samples += other.samples
        self.bytes += other.bytes


class Stopwatch:
    """Times the samples of a chunk, which one thread reads; it starts when it is made.

    Attributes:
        times: totals so far.
        one_by_one: whether each sample is to be timed alone.
    """

    one_by_one = False

    def __init__(self) -> None:
        self.times = StageTimes()
        self._last = 0

    def start(self) -> None:
        """Begin to read a sample, or several at once."""
        self._last = perf_counter_ns()

    def read(self, size: int) -> None:
        """Record bytes read."""
        last, self._last = self._last, perf_counter_ns()
        self.times.read += self._last - last
        self.times.bytes += size

    def decoded(self) -> None:
        """Record a field decoded."""
        last, self._last = self._last, perf_counter_ns()
        self.times.decode += self._last - last

    def transformed(self) -> None:
        """Record a picture transformed."""
        last, self._last = self._last, perf_counter_ns()
        self.times.transform += self._last - last

    def mapped(self) -> None:
        """Record a whole sample that went through the user's functions."""
        last, self._last = self._last, perf_counter_ns()
        self.times.map += self._last - last

    def add(self, read: int, decode: int, transform: int, size: int) -> None:
        """Record the stages of samples that were read at once.

        Args:
            read: ns to get bytes and check them.
            decode: ns from bytes to pixels or values.
            transform: ns to crop and resize.
            size: number of bytes read.
        """
        times = self.times
        times.read += read
        times.decode += decode
        times.transform += transform
        times.bytes += size
        self._last = perf_counter_ns()

    def stop(self, samples: int = 1) -> None:
        """Record samples in their slots."""
        self.times.samples += samples

    def finish(self) -> StageTimes:
        """End the chunk and return its totals."""
        return self.times
