"""What was observed of a loop and measured of a machine, as plain values.

`Ceilings` are what a machine can do with some shards, each part alone: the limits of any loader.
`Evidence` is what was observed of a loop. Its `Stages` come from what the threads of shardio's own
reading record, chunk by chunk and sample by sample. Each thread of each process writes to a file of
its own in one folder: fixed records in a memory map, so that nothing is lost when a worker is
ended, and no thread waits for another. Every chunk has a record; samples have one in some chunks
only, as many as a budget allows.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import timeit
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter_ns, thread_time_ns
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.reading.times import StageTimes, Stopwatch
from shardio.storage.local import reserve
from shardio.storage.temporary import temporary_folder

_FORMAT = struct.Struct("=12q")
_MOST_RECORDS = 1 << 14  # kept of a thread, the last ones, 1.5 MB
_MOST_FILES = 64  # read, the newest; each epoch may start threads
_LEAST_DELAYED = 2_000_000  # ns; for shorter chunks, asking for the delay costs too much
_RECORDED = "read", "decode", "transform"  # in the record of a sample
STAGES = *_RECORDED, "map"
_CHUNK, _SAMPLE, _MAP = 1, 2, 3
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
"""Times in ns. In a sample's record, wall and cpu are those of read, decode and transform; map has
a record of its own, since it may run when the native core has filled the whole chunk. In a chunk's,
wall is that of the whole, read, decode and transform; cpu is that of the whole, the run queue's
delay, the thread's CPU time when the chunk began, and the wall time of map."""

ProducerKind = Literal["processes", "threads", "here"]
"""Kind of what makes batches: worker processes, threads, or the loop's own thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Limits of a machine with some shards.

    Attributes:
        cold: bytes per second from storage, by eight threads; None where the page cache cannot
            be dropped for these files.
        warm: bytes per second from the page cache, by eight threads.
        loop_one: samples per second of a loop over the dataset, on one core.
        loop_all: samples per second of one such loop on each core, together.
        sharing: microseconds that a sample takes longer in two threads of one process than in two
            processes.
        loop_threads: samples per second of loops in threads of one process, one per core; None
            with two cores or fewer.
        decode_one: samples per second that one core decodes and transforms, from memory; None
            where fields are gathered as arrays, many samples at once.
        decode_all: samples per second that a process on each core decodes and transforms.
        decode_share: share of decoding in that time; the rest is the transform.
        copy: bytes per second that one core copies in memory.
        handoff: microseconds until a thread runs that waited for another, as threads do that
            contend for the interpreter's lock.
        handover: batches per second from one worker process that has nothing else to do.
        handover_loop: microseconds of CPU time per batch in the loop's thread.
        handover_worker: microseconds of CPU time per batch in the worker.
        to_device: bytes per second to a CUDA device; None without one.
        side: mean length of the images' shorter side in pixels; None without images.
        spread: half the distance between the second slowest and the second fastest round, over
            the median, of loops on one core or of the speed-up by all, whichever is more.
        others: mean number of cores that others kept busy meanwhile; None where not known.
    """

    cold: float | None
    warm: float
    loop_one: float
    loop_all: float
    sharing: float
    loop_threads: float | None
    decode_one: float | None
    decode_all: float | None
    decode_share: float | None
    copy: float
    handoff: float
    handover: float
    handover_loop: float
    handover_worker: float
    to_device: float | None
    side: float | None
    spread: float = 0.0
    others: float | None = None

    @property
    def speedup(self) -> float:
        """Rate of all cores over that of one."""
        return max(self.loop_all / self.loop_one, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Microseconds of a sample in one stage.

    Attributes:
        wall: mean wall time.
        cpu: mean CPU time.
        p50: median wall time.
        p99: wall time that one sample of a hundred exceeds.
    """

    wall: float = 0.0
    cpu: float = 0.0
    p50: float = 0.0
    p99: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Time of a sample by stage, in the thread that makes it, in microseconds.

    Attributes:
        read: getting the bytes from storage and checking them.
        decode: turning bytes into pixels or values.
        transform: crop, resize, the user's transform.
        map: the user's functions on whole samples; nothing without one.
        batch: the rest of filling a batch; its p50 and p99 are those of chunks.
        outside: CPU time between chunks: the plan, and handing batches over.
        waiting: other time between chunks, when nobody asked for a batch; for the loop's own
            thread, that of its step.
        total: wall time of all these parts, measured as one.
        delay: part of the total that threads waited for a core.
        lock: part of decode, transform, map and batch in which the thread neither ran nor waited
            for a core: the wait for the interpreter's lock, or for what a transform waits for.
        bytes: stored bytes.
        recorded: share of the samples that was recorded.
        overhead: share of the time that recording took.
    """

    read: Stage
    decode: Stage
    transform: Stage
    batch: Stage
    outside: float
    waiting: float
    total: float
    delay: float
    lock: float
    bytes: float
    recorded: float
    overhead: float
    map: Stage = Stage()

    @property
    def by_name(self) -> dict[str, Stage]:
        """Stages that samples went through, in order."""
        return {n: getattr(self, n) for n in (*STAGES, "batch") if n != "map" or self.map.wall}

    @property
    def wall(self) -> float:
        """Wall time of a sample in these stages."""
        return sum(part.wall for part in self.by_name.values())

    @property
    def cpu(self) -> float:
        """CPU time of a sample in its thread."""
        return sum(part.cpu for part in self.by_name.values())

    def parts(self, delay: float) -> dict[str, float]:
        """Return the time of each stage, and that between chunks, without the wait for a core.

        Where a thread waited for a core, it did not run: a stage's share in that wait is its share
        in the time that is not CPU time.

        Args:
            delay: microseconds of a sample that its thread waited for a core.
        """
        stages = self.by_name
        off = {name: max(one.wall - one.cpu, 0.0) for name, one in stages.items()}
        left = 1 - min(delay / max(sum(off.values()), 1e-9), 1.0)
        parts = {name: stages[name].wall - off[name] * (1 - left) for name in stages}
        return {**parts, "outside": self.outside}


@dataclass(frozen=True, slots=True, kw_only=True)
class Producer:
    """A process or thread that makes batches.

    Attributes:
        number: number of the process or thread.
        cpu: share of the time that it ran; in a process, all threads together.
        delay: share of the time that its threads waited for a core.
        busy_threads: number of its threads that ran for more than a twentieth of its CPU time.
        filling: share of the time that it filled batches; None where not recorded.
    """

    number: int
    cpu: float
    delay: float
    busy_threads: int
    filling: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Observations of a loop, after its first batches.

    Attributes:
        cores: number of cores that the process may use.
        kind: kind of the producers.
        producers: makers of batches; none for the loop's own thread. Each epoch may have others.
        number: number of producers at the same time.
        seconds: seconds observed.
        batches: batches received.
        samples: samples in these batches.
        slices: samples per second in equal parts of the time.
        waiting: share of the time that the loop waited for batches.
        receiving: share of the time that the loop's thread ran while it waited.
        ready: share of the batches that the loop did not wait for.
        turns: share of the waiting by turn of the producers.
        first_batch: seconds from asking for an iterator to the first batch.
        starting: share of an epoch's time before its first batch.
        restarts: whether each epoch starts workers.
        steps: number of steps of an epoch; None where not known.
        lock_wait: mean seconds that another thread of this process waited for the interpreter's
            lock; None if it was not tried.
        cached: share of the shards that was in the page cache before, or of a store's, in the cache
            of shards; None where not known.
        from_disk: bytes per second from a local disk; None where the kernel does not say.
        sent: bytes per second that workers wrote, mostly to pipes; None where not known.
        faults: new pages of memory per second in workers; None where not known.
        memory: most bytes that the process and its children were seen to hold themselves, at looks
            after a second and then every half minute; None where not known.
        watching: share of a core that looking at the processes took.
        stages: time of a sample by stage; None where not recorded.
        unit: "samples", or "batches" where nothing tells how many samples they hold.
        ours: whether shardio's datasets, whose stages can be recorded, are read.
        torch: whether a DataLoader makes the batches.
        remote: whether shards are of a store.
        others: mean number of cores that others kept busy; None where not known.
        transform: name of the callable for images; None without one, or with one of shardio's.
        maps: names of the functions on whole samples.
        whole: whether images are decoded whole, since nothing crops or resizes them before.
    """

    cores: int
    kind: ProducerKind
    producers: tuple[Producer, ...]
    number: int
    seconds: float
    batches: int
    samples: int
    slices: tuple[float, ...]
    waiting: float
    receiving: float
    ready: float
    turns: tuple[float, ...]
    first_batch: float
    starting: float
    restarts: bool
    steps: int | None
    lock_wait: float | None
    cached: float | None
    from_disk: float | None
    sent: float | None
    faults: float | None
    memory: int | None
    watching: float
    stages: Stages | None
    unit: str = "samples"
    ours: bool = True
    torch: bool = False
    remote: bool = False
    others: float | None = None
    transform: str | None = None
    maps: tuple[str, ...] = ()
    whole: bool = False

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds

    @property
    def fetching(self) -> bool:
        """Whether shards of a store had to be fetched."""
        return self.remote and (self.cached or 0.0) < 1

    @property
    def for_core(self) -> float:
        """Microseconds of a sample that its thread waited for a core; 0 where not known.

        The kernel says it of whole threads, too, where chunks are too short to ask it.
        """
        if self.stages is None:
            return 0.0
        recorded = [one for one in self.producers if one.filling is not None]
        cpu = sum(one.cpu for one in recorded)
        share = sum(one.delay for one in recorded) / cpu if cpu else 0.0
        return max(self.stages.delay, share * (self.stages.cpu + self.stages.outside))

    @property
    def for_lock(self) -> float:
        """Microseconds of a sample that its thread waited for the lock, see Stages."""
        stages = self.stages
        return max(stages.lock + stages.delay - self.for_core, 0.0) if stages is not None else 0.0

    @property
    def spread(self) -> float:
        """Half the difference between the fastest and the slowest slice, over the rate.

        A batch more or less in a slice is no difference. A batch of each producer more or less in
        the whole is the least that the rate is uncertain by.
        """
        whole = max(self.number, 1) / self.batches
        apart = (max(self.slices) - min(self.slices)) / 2 / self.rate
        return max(apart - len(self.slices) / 2 * whole, whole)

    @property
    def step_seconds(self) -> float:
        """Seconds of the loop's own for a batch."""
        return (1 - self.waiting) * self.seconds / self.batches

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evidence:
        """Make evidence of the values that asdict returned."""
        found = dict(values)
        found["producers"] = tuple(Producer(**part) for part in found["producers"])
        for name in ("slices", "turns", "maps"):
            found[name] = tuple(found[name])
        if found["stages"] is not None:
            parts = dict(found["stages"])
            for name in (*STAGES, "batch"):
                parts[name] = Stage(**parts[name])
            found["stages"] = Stages(**parts)
        return cls(**found)


def stages_of(records: Sequence[ThreadRecords]) -> Stages | None:
    """Return the stages of a sample, from the records of all threads; None if there are none."""
    if not records:
        return None
    of_threads = ((each.chunks, each.samples, each.maps) for each in records)
    chunks, samples, maps = map(np.concatenate, zip(*of_threads, strict=True))
    if not len(samples) or not chunks["samples"].sum():
        return None
    count = int(chunks["samples"].sum())
    weights = samples["samples"]
    walls, cpus = samples["wall"][:, :3], samples["cpu"][:, :3]
    means = chunks["wall"].sum(axis=0) / count / 1e3
    cpu_means = cpus.sum(axis=0) / weights.sum() / 1e3
    per_sample = walls / weights[:, None] / 1e3
    rest = chunks["wall"][:, 0] - chunks["wall"][:, 1:].sum(axis=1) - chunks["cpu"][:, 3]
    whole_cpu, delay, _, map_wall = (chunks["cpu"].sum(axis=0) / count / 1e3).tolist()
    stages = {
        name: _stage(means[place + 1], cpu_means[place], per_sample[:, place])
        for place, name in enumerate(_RECORDED)
    }
    if len(maps):
        running = maps["cpu"][:, 0].sum() / max(maps["wall"][:, 0].sum(), 1)
        stages["map"] = _stage(map_wall, map_wall * running, maps["wall"][:, 0] / 1e3)
    batch_cpu = whole_cpu - sum(stage.cpu for stage in stages.values())
    some = chunks["samples"] > 0  # none in what replaces bad samples
    each = rest[some] / chunks["samples"][some] / 1e3
    batch = _stage(rest.sum() / count / 1e3, max(batch_cpu, 0.0), each)
    outside, waiting, total = (value / count / 1e3 for value in _gaps(records))
    read = stages["read"]
    cpu = sum(stage.cpu for stage in stages.values()) - read.cpu + batch.cpu
    wall = sum(stage.wall for stage in stages.values()) - read.wall + batch.wall
    # Reading cannot have waited for a core for longer than it did not run.
    delayed = max(delay * cpu / max(whole_cpu, 1e-9), delay - max(read.wall - read.cpu, 0.0))
    sample_cost, chunk_cost = costs_of_recording()
    spent = (len(samples) + len(maps)) * sample_cost + len(chunks) * chunk_cost
    return Stages(
        **stages,
        batch=batch,
        outside=outside,
        waiting=waiting,
        total=total,
        delay=delay,
        lock=max(wall - cpu - delayed, 0.0),
        bytes=float(chunks["bytes"].sum()) / count,
        recorded=min(float(weights.sum()) / count, 1.0),
        overhead=spent * 1e6 / count / max(total, 1e-9),
    )


def _stage(wall: float, cpu: float, walls: NDArray[np.float64]) -> Stage:
    p50, p99 = np.percentile(walls, [50, 99]).tolist()
    return Stage(wall=float(wall), cpu=float(cpu), p50=p50, p99=p99)


def _gaps(records: Sequence[ThreadRecords]) -> tuple[float, float, float]:
    """Sum up CPU time and waiting between chunks, and the whole time, over all threads; ns."""
    outside = waiting = total = 0.0
    for thread in records:
        chunks = thread.chunks
        if not len(chunks):
            continue
        ends = chunks["start"] + chunks["wall"][:, 0]
        cpu_ends = chunks["cpu"][:, 2] + chunks["cpu"][:, 0]
        gaps = chunks["start"][1:] - ends[:-1]
        cpu = float((chunks["cpu"][1:, 2] - cpu_ends[:-1]).sum())
        outside += cpu
        waiting += max(float(gaps.sum()) - cpu, 0.0)
        total += float(ends[-1] - chunks["start"][0])
    return outside, waiting, total


class ThreadRecords(NamedTuple):
    """Records of one thread.

    Attributes:
        process: number of the process.
        thread: number of the thread.
        chunks: records of chunks, RECORD [n].
        samples: records of samples, RECORD [m].
        maps: records of what functions on whole samples took, RECORD [k].
    """

    process: int
    thread: int
    chunks: NDArray[Any]
    samples: NDArray[Any]
    maps: NDArray[Any]


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
            of_kinds = (records[records["kind"] == kind] for kind in (_CHUNK, _SAMPLE, _MAP))
            found.append(ThreadRecords(process, thread, *of_kinds))
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

    def heed(self, wall: int, records: int) -> None:
        """Adapt to the budget, given the time of a chunk, and how many records it may have."""
        self.slow = wall >= _LEAST_DELAYED
        if records and wall:
            wanted = self._cost * 1e9 * records / wall / self._budget
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
        uses = cpu, file.delay() - self._delay, self._cpu_before, times.map
        file.write(_CHUNK, self._start, times.samples, times.bytes, *walls, *uses)
        file.heed(wall, times.samples * (2 if times.map else 1))
        return times


class _SampleWatch(_ChunkWatch):
    """Stopwatch that records a chunk and its samples."""

    one_by_one = True

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

    def mapped(self) -> None:
        """See Stopwatch."""
        start, cpu = self._last, self._last_cpu
        super().mapped()
        self._count(3)
        times = self._last - start, self._last_cpu - cpu
        self._file.write(_MAP, start, 1, 0, times[0], 0, 0, 0, times[1], 0, 0, 0)

    def add(self, read: int, decode: int, transform: int, size: int) -> None:
        """See Stopwatch; what waits in the native core is reading."""
        super().add(read, decode, transform, size)
        self._count(0)
        for stage, wall in ((1, decode), (2, transform)):
            self._cpu[stage] += min(wall, self._cpu[0])
            self._cpu[0] -= min(wall, self._cpu[0])
        self._cpu[0] = min(self._cpu[0], read)  # the rest is filling the batch

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
    return float(np.median(timeit.repeat(action, repeat=_TRIALS, number=1)))
