"""What a machine could do with some shards, each part alone: the limits of any loader.

What was seen of a loop: plain values, from which the verdict follows, in any process.

How fast a loader would be with other threads, workers or cores: arithmetic of measured parts.

Every producer takes the CPU time of a sample, longer where several cores are busy, and the time
that it only waits. All producers share the cores with the loop's own thread; all threads share the
interpreter's lock, which a thread releases some six times a sample, and waits for the longer the
more threads there are; the loop's thread takes batches one after the other. The least of these
limits is the rate. What no run has shown is assumed: more cores of the same kind, with the same
loss for each further busy core, and storage that keeps up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardio.errors import SituationError
from shardio.profiling.record import ThreadRecords, costs_of_recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Limits, measured.

    Attributes:
        cold: bytes per second from storage, by eight threads; None where the page cache cannot
            be dropped for these files.
        warm: bytes per second from the page cache, likewise.
        loop_one: samples per second of a loop over the dataset, on one core.
        loop_all: the same of a loop on each core, together: what is lost to no hand-over.
        sharing: microseconds that a sample takes longer in two threads of one process than in two
            processes.
        loop_threads: samples per second of loops in threads of one process, one a core; None with
            two cores or less.
        decode_one: samples per second that one core decodes and transforms, from memory; None
            where fields are gathered as arrays, many samples at once.
        decode_all: the same by a process on each core.
        decode_share: share of that time that is decoding; the rest is the transform.
        copy: bytes per second that one core copies in memory.
        handoff: microseconds until a thread runs that waited for another, which the interpreter's
            lock costs wherever threads contend for it.
        handover: batches per second from one worker process that has nothing else to do.
        handover_loop: microseconds of CPU time of the loop's thread for each batch.
        handover_worker: the same of the worker.
        to_device: bytes per second to a CUDA device; None without one.
        side: pixels of the pictures' shorter side, on average; None without pictures.
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

    @property
    def speedup(self) -> float:
        """How much more all cores do than one."""
        return max(self.loop_all / self.loop_one, 1.0)


ProducerKind = Literal["processes", "threads", "here"]
"""What makes batches: worker processes, threads, or the loop's own thread."""

_STAGES = "read", "decode", "transform"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Microseconds of a sample in one stage.

    Attributes:
        wall: mean time that passed.
        cpu: mean time that it ran.
        p50: median of wall.
        p99: of 100 samples, one takes longer.
    """

    wall: float
    cpu: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Where the time of a sample goes in the thread that makes it, in microseconds.

    Attributes:
        read: bytes from storage, checked.
        decode: bytes to pixels or values.
        transform: crop, resize, the user's transform.
        batch: the rest of filling a batch; its p50 and p99 are of chunks.
        outside: CPU time between chunks: the plan, and handing batches over.
        waiting: time between chunks that is no CPU time: nobody asked for a batch.
        total: wall time of all of that, measured as one; the parts add up to it.
        delay: part of it that threads waited for a core.
        lock: part of decode, transform and batch that no thread ran and no core was awaited: the
            wait for the interpreter's lock, or for what a transform waits for.
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

    @property
    def cpu(self) -> float:
        """CPU time of a sample in its thread."""
        return sum(part.cpu for part in (self.read, self.decode, self.transform, self.batch))

    @property
    def blocked_read(self) -> float:
        """Part of read that was no CPU time."""
        return max(self.read.wall - self.read.cpu, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Producer:
    """A process or thread that makes batches.

    Attributes:
        number: of the process or thread.
        cpu: share of the time that it ran; of a process all threads together.
        delay: share of the time that its threads waited for a core.
        busy_threads: of its threads, how many ran for more than a twentieth of its CPU time.
        filling: share of the time that it filled batches; None where that is not recorded.
    """

    number: int
    cpu: float
    delay: float
    busy_threads: int
    filling: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was seen of a loop, after its first batches.

    Attributes:
        cores: that the process may use.
        kind: of producers.
        producers: what made batches; none if that is the loop's own thread. Each epoch may have
            others.
        number: of producers at once.
        seconds: observed.
        batches: received.
        samples: in them.
        slices: samples per second in equal parts of the time.
        waiting: share of the time that the loop waited for batches.
        receiving: share of the time that the loop's thread ran while it waited.
        ready: share of the batches that the loop did not wait for.
        turns: share of the waiting by turn of the producers.
        first_batch: seconds from asking for an iterator to having a batch.
        starting: share of an epoch's time that passes before its first batch is there.
        restarts: each epoch starts workers.
        steps: of an epoch; None if it is not known.
        lock_wait: seconds that another thread of this process had to wait for the interpreter's
            lock each time, on average; None if it was not tried.
        cached: share of the shards that was in the page cache before; None if it is not known.
        from_disk: bytes per second that came from a local disk; None where the kernel does not say.
        sent: bytes per second that workers wrote, to pipes above all; None likewise.
        faults: pages per second of new memory in workers; None likewise.
        memory: the most bytes that the process and its children were seen to hold themselves, with
            a look after a second and then every half minute; None likewise.
        watching: share of a core that looking at the processes took.
        stages: of a sample; None where they are not recorded.
        unit: what was counted: samples, or batches where nothing tells how many samples they hold.
        ours: the batches are read by shardio's datasets, whose stages can be recorded.
        torch: a DataLoader makes the batches.
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

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds

    @property
    def spread(self) -> float:
        """Half of what lies between the slowest and the fastest slice, over the rate."""
        return (max(self.slices) - min(self.slices)) / 2 / self.rate

    @property
    def step_seconds(self) -> float:
        """The loop's own time for a batch."""
        return (1 - self.waiting) * self.seconds / self.batches

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evidence:
        """The inverse of dataclasses.asdict, through JSON."""
        found = dict(values)
        found["producers"] = tuple(Producer(**part) for part in found["producers"])
        found["slices"], found["turns"] = tuple(found["slices"]), tuple(found["turns"])
        if found["stages"] is not None:
            parts = dict(found["stages"])
            for name in (*_STAGES, "batch"):
                parts[name] = Stage(**parts[name])
            found["stages"] = Stages(**parts)
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)


def filling_shares(records: Sequence[ThreadRecords]) -> dict[tuple[int, int], float]:
    """By process and thread, the share of the time that it filled batches."""
    shares = {}
    for thread in records:
        chunks = thread.chunks
        if len(chunks) > 1:
            walls = chunks["wall"][:, 0]
            whole = int(chunks["start"][-1] + walls[-1] - chunks["start"][0])
            shares[thread.process, thread.thread] = float(walls.sum()) / max(whole, 1)
    return shares


def stages_of(records: Sequence[ThreadRecords]) -> Stages | None:
    """What the records of all threads say; None if they say nothing."""
    chunks = np.concatenate([thread.chunks for thread in records]) if records else None
    samples = np.concatenate([thread.samples for thread in records]) if records else None
    if chunks is None or samples is None or not len(samples) or not chunks["samples"].sum():
        return None
    count = int(chunks["samples"].sum())
    weights = samples["samples"]
    walls, cpus = samples["wall"][:, :3], samples["cpu"][:, :3]
    means = chunks["wall"].sum(axis=0) / count / 1e3
    cpu_means = cpus.sum(axis=0) / weights.sum() / 1e3
    per_sample = walls / weights[:, None] / 1e3
    stages = {
        name: _stage(means[place + 1], cpu_means[place], per_sample[:, place])
        for place, name in enumerate(_STAGES)
    }
    rest = chunks["wall"][:, 0] - chunks["wall"][:, 1:].sum(axis=1)
    whole_cpu, delay = (float(chunks["cpu"][:, at].sum()) / count / 1e3 for at in (0, 1))
    batch_cpu = max(whole_cpu - float(cpu_means.sum()), 0.0)
    batch = _stage(float(rest.sum()) / count / 1e3, batch_cpu, rest / chunks["samples"] / 1e3)
    outside, waiting, total = (value / count / 1e3 for value in _gaps(records))
    cpu = stages["decode"].cpu + stages["transform"].cpu + batch.cpu
    wall = stages["decode"].wall + stages["transform"].wall + batch.wall
    share = cpu / max(whole_cpu, 1e-9)
    sample_cost, chunk_cost = costs_of_recording()
    recorded = min(float(weights.sum()) / count, 1.0)
    return Stages(
        **stages,
        batch=batch,
        outside=outside,
        waiting=waiting,
        total=total,
        delay=delay,
        lock=max(wall - cpu - delay * share, 0.0),
        bytes=float(chunks["bytes"].sum()) / count,
        recorded=recorded,
        overhead=(len(samples) * sample_cost + len(chunks) * chunk_cost)
        / count
        * 1e6
        / max(total, 1e-9),
    )


def _stage(wall: float, cpu: float, walls: NDArray[np.float64]) -> Stage:
    p50, p99 = np.percentile(walls, [50, 99]).tolist()
    return Stage(wall=float(wall), cpu=float(cpu), p50=p50, p99=p99)


def _gaps(records: Sequence[ThreadRecords]) -> tuple[float, float, float]:
    """Of all threads together: CPU time and waiting between chunks, and the whole time; ns."""
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


_RELEASES = 6
"""Of the interpreter's lock: to read, for the checksum, twice to decode, to resize, to mirror."""


_MOST_LOCKED = 0.25
"""Of a sample's CPU time; what two threads lose beyond that, they lose to something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCosts:
    """What a sample costs, in microseconds, on a machine.

    Attributes:
        cpu: CPU time of its producer, while one core is busy.
        idle: time that its producer only waits, for storage or in a transform.
        locked: CPU time of its producer that holds the interpreter's lock.
        lock_bound: of the whole loader, what a sample takes at least with a thread on each of more
            than two cores; 0 where that was not measured.
        handoff: time until a thread runs again that waited for the interpreter's lock.
        sent: CPU time of a worker, besides, to plan it and hand it over.
        received: CPU time of the loop's thread to take it from a worker.
        planned: CPU time of the loop's thread to have it made by threads.
        step: time of the loop's own step.
        cores: of the machine.
        speedup: how much more all measured cores do than one.
        measured_cores: of the machine that the speed-up was measured on.
    """

    cpu: float
    idle: float
    locked: float
    lock_bound: float
    handoff: float
    sent: float
    received: float
    planned: float
    step: float
    cores: int
    speedup: float
    measured_cores: int

    def with_cores(self, cores: int) -> SampleCosts:
        """The same on another machine."""
        return replace(self, cores=cores)

    def at_speed(self, factor: float) -> SampleCosts:
        """The same while the cores are that much faster."""
        names = "cpu", "locked", "lock_bound", "sent", "received", "planned"
        return replace(self, **{name: getattr(self, name) / factor for name in names})

    def busy(self, cores: float) -> float:
        """How much more so many busy cores do than one."""
        cores = min(max(cores, 1.0), float(self.cores))
        if self.measured_cores == 1:
            return cores
        return 1 + (cores - 1) * (self.speedup - 1) / (self.measured_cores - 1)


def costs_of(alone: Evidence, ceilings: Ceilings, batch_size: int) -> SampleCosts:
    """What a sample costs.

    Args:
        alone: a run of the loop's own thread.
        ceilings: of the same machine.
        batch_size: of the run.

    Raises:
        UsageError: the run was too short to tell.
    """
    stages = alone.stages
    if stages is None:
        raise SituationError(
            "the runs are too short to tell where time goes", remedy="give them more seconds"
        )
    waited = alone.receiving * alone.seconds / alone.samples * 1e6
    wall = sum(part.wall for part in (stages.read, stages.decode, stages.transform, stages.batch))
    planned = max(waited - stages.cpu, 0.0)
    idle = max(wall - stages.cpu - stages.delay, 0.0)
    whole = max(1e6 / ceilings.loop_one - planned, 1.0)  # of shares: a run alone may be off
    cpu = whole * stages.cpu / (stages.cpu + idle)
    return SampleCosts(
        cpu=cpu,
        idle=whole - cpu,
        locked=min(ceilings.sharing / max(ceilings.handoff, 1e-3) / _RELEASES, _MOST_LOCKED) * cpu,
        lock_bound=1e6 / ceilings.loop_threads if ceilings.loop_threads else 0.0,
        handoff=ceilings.handoff,
        sent=planned + ceilings.handover_worker / batch_size,
        received=ceilings.handover_loop / batch_size,
        planned=planned,
        step=alone.step_seconds / batch_size * 1e6,
        cores=alone.cores,
        speedup=ceilings.speedup,
        measured_cores=alone.cores,
    )


def predict(parts: SampleCosts, kind: ProducerKind, producers: int) -> float:
    """Samples per second.

    Args:
        parts: of the loader and machine.
        kind: of producers.
        producers: how many; 0 with the loop's own thread.
    """
    if kind == "here":
        return 1e6 / (parts.cpu + parts.idle + parts.planned + parts.step)
    return 1e6 / max(cost for _, cost in costs(parts, kind, producers))


def costs(parts: SampleCosts, kind: ProducerKind, producers: int) -> list[tuple[str, float]]:
    """What each limit makes a sample cost, in microseconds of the whole loader."""
    own = parts.received if kind == "processes" else parts.planned
    cpu = parts.cpu + (parts.sent if kind == "processes" else 0)
    handing = 0.0
    if kind == "threads":
        contended = min((producers - 1) * parts.locked / (parts.cpu + parts.idle), 1.0)
        handing = _RELEASES * contended * parts.handoff
    running = min(producers, parts.cores)
    slowed = running / parts.busy(running)
    found = [
        ("producers", (cpu * slowed + parts.idle + handing) / producers),
        ("cores", (cpu + own) / parts.busy(min(producers + 1, parts.cores))),
        ("loop", own + parts.step),
    ]
    if kind == "threads":
        lock = parts.lock_bound or parts.locked + handing + own
        found.append(("lock", lock))
    return found
