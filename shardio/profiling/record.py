"""What a loop's reading did, chunk by chunk and sample by sample, recorded by its threads.

Each thread of each process writes to a file of its own in one folder: fixed records in a memory
map, so that nothing is lost when a worker is ended, and no thread waits for another. Every chunk
has a record; samples have one in some chunks only, as many as a budget allows.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from time import perf_counter, perf_counter_ns, thread_time_ns
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.reading.times import StageTimes, Stopwatch
from shardio.storage.local import reserve
from shardio.storage.temporary import temporary_folder

_FORMAT = struct.Struct("=12q")
_MOST_RECORDS = 1 << 14  # kept of a thread, the last ones, 1.5 MB
_MOST_FILES = 64  # read, the newest; each epoch may start threads
_LEAST_DELAYED = 2_000_000  # ns; for shorter chunks, asking for the delay costs too much
_CHUNK, _SAMPLE = 1, 2
_TRIALS = 200
_IN_A_LOOP = 3
RECORD = np.dtype(
    [
        ("kind", np.int64),
        ("start", np.int64),
        ("samples", np.int64),
        ("bytes", np.int64),
        ("wall", np.int64, (4,)),
        ("cpu", np.int64, (4,)),
    ]
)
"""Times in ns. In a sample's record, wall and cpu are those of read, decode and transform. In a
chunk's, wall is that of the whole, read, decode and transform; cpu is that of the whole, the run
queue's delay, and the thread's CPU time when the chunk began."""


class ThreadRecords(NamedTuple):
    """Records of one thread.

    Attributes:
        process: number of the process.
        thread: number of the thread.
        chunks: records of chunks, RECORD [n].
        samples: records of samples, RECORD [m].
    """

    process: int
    thread: int
    chunks: NDArray[Any]
    samples: NDArray[Any]


class Recorder:
    """Maker of stopwatches that record; for ShardDataset.timed_by.

    Args:
        budget: share of the reading's time that recording may take.
    """

    def __init__(self, budget: float) -> None:
        self._folder = temporary_folder()
        self._path = Path(self._folder.name)
        self._budget = budget
        self._local = threading.local()
        costs_of_recording()  # here, and not in each worker

    def __call__(self) -> Stopwatch:
        """Make a stopwatch for a chunk of this thread."""
        file = getattr(self._local, "file", None)
        if file is None or file.process != os.getpid():
            try:
                file = self._local.file = _File(self._path, self._budget)
            except OSError:  # the watching has ended, or the disk is full, and workers go on
                return Stopwatch()
        return _SampleWatch(file) if file.wants_samples() else _ChunkWatch(file)

    def __getstate__(self) -> dict[str, Any]:
        return {"_path": self._path, "_budget": self._budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _local=threading.local())

    def read(self, since: int = 0) -> list[ThreadRecords]:
        """Return the records of all threads of all processes.

        Args:
            since: time by perf_counter_ns; records that began earlier are left out.
        """
        found = []
        for path in _by_age(self._path)[-_MOST_FILES:]:
            process, thread = map(int, path.name.split("-"))
            try:
                records = np.fromfile(path, RECORD)
            except FileNotFoundError:  # a thread that has just begun removed it
                continue
            records = records[(records["kind"] > 0) & (records["start"] >= since)]
            records = records[np.argsort(records["start"], kind="stable")]
            chunks, samples = (records[records["kind"] == kind] for kind in (_CHUNK, _SAMPLE))
            found.append(ThreadRecords(process, thread, chunks, samples))
        return found

    def close(self) -> None:
        """Remove the records."""
        self._folder.cleanup()


def _by_age(folder: Path) -> list[Path]:
    """List record files, the oldest first."""
    changed = {}
    for path in folder.iterdir():
        with suppress(FileNotFoundError):  # another process has just removed it
            changed[path] = path.stat().st_ctime
    return sorted(changed, key=lambda path: changed[path])


def _remove_old(folder: Path) -> None:
    """Remove records of ended threads that nobody will read, since newer ones fill the limit."""
    if not Path("/proc/self/task").exists():
        return
    for path in _by_age(folder)[: 1 - _MOST_FILES]:
        process, _, thread = path.name.partition("-")
        if not Path(f"/proc/{process}/task/{thread}").exists():
            path.unlink(missing_ok=True)


class _File:
    """File that one thread writes to."""

    def __init__(self, folder: Path, budget: float) -> None:
        self.process = os.getpid()
        self.slow = True
        self._schedule = -1
        thread = threading.get_native_id()
        _remove_old(folder)
        path = folder / f"{self.process}-{thread}"
        with path.open("w+b") as stream:
            try:
                reserve(stream.fileno(), _MOST_RECORDS * _FORMAT.size)
            except OSError:
                path.unlink()
                raise
            self._memory = mmap.mmap(stream.fileno(), 0)
        self._records = 0
        self._budget = budget
        self._cost, _ = costs_of_recording()
        self._every, self._until = 1, 0
        with suppress(OSError):
            self._schedule = os.open(f"/proc/self/task/{thread}/schedstat", os.O_RDONLY)

    def __del__(
        self, close: Callable[[int], None] = os.close, getpid: Callable[[], int] = os.getpid
    ) -> None:
        if self._schedule >= 0 and self.process == getpid():  # global names may be gone
            close(self._schedule)

    def wants_samples(self) -> bool:
        """Tell whether the samples of the next chunk are to be recorded."""
        self._until = (self._until or self._every) - 1
        return not self._until

    def heed(self, wall: int, samples: int) -> None:
        """Adapt to the budget, given the time that some samples took."""
        self.slow = wall >= _LEAST_DELAYED
        if samples and wall:
            wanted = self._cost * 1e9 * samples / wall / self._budget
            self._every = max(1, round(wanted))

    def delay(self) -> int:
        """Return the run queue's delay of this thread so far."""
        if self._schedule < 0 or not self.slow:
            return 0
        return int(os.pread(self._schedule, 80, 0).split()[1])

    def write(self, *record: int) -> None:
        """Add a record, in place of the oldest if the file is full."""
        at = self._records % _MOST_RECORDS
        _FORMAT.pack_into(self._memory, at * _FORMAT.size, *record)
        self._records += 1


class _ChunkWatch(Stopwatch):
    """Stopwatch that records a chunk."""

    def __init__(self, file: _File) -> None:
        super().__init__()
        self._file = file
        self._delay = file.delay()
        self._cpu_before = thread_time_ns()
        self._start = perf_counter_ns()

    def finish(self) -> StageTimes:
        """See Stopwatch."""
        wall, cpu = perf_counter_ns() - self._start, thread_time_ns() - self._cpu_before
        times, file = self.times, self._file
        walls = wall, times.read, times.decode, times.transform
        uses = cpu, file.delay() - self._delay, self._cpu_before, 0
        file.write(_CHUNK, self._start, times.samples, times.bytes, *walls, *uses)
        file.heed(wall, times.samples)
        return times


class _SampleWatch(_ChunkWatch):
    """Stopwatch that records a chunk and its samples."""

    def __init__(self, file: _File) -> None:
        super().__init__(file)
        self._cpu = [0, 0, 0, 0]
        self._last_cpu = 0
        self._began = 0
        self._before = (0, 0, 0, 0)

    def start(self) -> None:
        """See Stopwatch."""
        times = self.times
        self._before = times.bytes, times.read, times.decode, times.transform
        self._cpu = [0, 0, 0, 0]
        self._last_cpu = thread_time_ns()
        super().start()
        self._began = self._last

    def read(self, size: int) -> None:
        """See Stopwatch."""
        super().read(size)
        self._count(0)

    def decoded(self) -> None:
        """See Stopwatch."""
        super().decoded()
        self._count(1)

    def transformed(self) -> None:
        """See Stopwatch."""
        super().transformed()
        self._count(2)

    def stop(self, samples: int = 1) -> None:
        """See Stopwatch."""
        super().stop(samples)
        size, read, decode, transform = self._before
        times = self.times
        walls = times.read - read, times.decode - decode, times.transform - transform, 0
        self._file.write(_SAMPLE, self._began, samples, times.bytes - size, *walls, *self._cpu)

    def _count(self, stage: int) -> None:
        last, self._last_cpu = self._last_cpu, thread_time_ns()
        self._cpu[stage] += self._last_cpu - last


@cache
def costs_of_recording() -> tuple[float, float]:
    """Measure the seconds that recording a sample adds, and a chunk; once in a process.

    Trials cannot show the whole: in a loop, where decoding has filled the caches of the core with
    its own instructions and data, the CPU time of samples grows by some three times as much
    (tools/check/overhead.py).
    """
    nowhere = _Nowhere()
    watch, plain = _SampleWatch(nowhere), Stopwatch()
    sample = _usual_time(lambda: _count_sample(watch)) - _usual_time(lambda: _count_sample(plain))
    chunk = _usual_time(lambda: _ChunkWatch(nowhere).finish())
    chunk -= _usual_time(lambda: Stopwatch().finish())
    return max(_IN_A_LOOP * sample, 1e-7), max(_IN_A_LOOP * chunk, 1e-7)


class _Nowhere(_File):
    """File that keeps no records."""

    def __init__(self) -> None:
        self.process, self._schedule, self._records = os.getpid(), -1, 0
        self.slow, self._budget, self._cost = False, 1.0, 0.0
        self._memory = mmap.mmap(-1, _FORMAT.size)

    def write(self, *record: int) -> None:
        """See _File."""
        _FORMAT.pack_into(self._memory, 0, *record)


def _count_sample(watch: Stopwatch) -> None:
    watch.start()
    watch.read(1)
    watch.decoded()
    watch.transformed()
    watch.stop()


def _usual_time(action: Callable[[], object]) -> float:
    """Return the median of some trials in seconds."""
    seconds = []
    for _ in range(_TRIALS):
        start = perf_counter()
        action()
        seconds.append(perf_counter() - start)
    return float(np.median(seconds))
